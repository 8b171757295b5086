"""The page run without a browser: what it says and what its address becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import app.main
from discovery import Sky
from tests.app.conftest import HOSTILE, NUM_SIMULATED

MAIN = Path(app.main.__file__)


@pytest.fixture
def opened(sky_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Open the page with the parameters of an address."""

    def run(**params: str) -> AppTest:
        monkeypatch.setattr("sys.argv", [str(MAIN), str(sky_folder)])
        at = AppTest.from_file(str(MAIN), default_timeout=60)
        for name, value in params.items():
            at.query_params[name] = value
        at.run()
        assert not at.exception
        return at

    return run


def html(at: AppTest) -> str:
    return "\n".join(element.proto.body for element in at.get("html"))


def params(at: AppTest) -> dict[str, str]:
    # Set here: text. Set by the page: a list of texts.
    return {
        name: value if isinstance(value, str) else value[0]
        for name, value in at.query_params.items()
    }


def codes(at: AppTest) -> list[str]:
    return [element.value for element in at.code]


def test_the_page_opens_with_a_bright_object_and_says_which_in_its_address(
    opened: Any, sky: Sky
) -> None:
    at = opened()

    assert params(at) == {"seed": sky.random_bright(0)}
    assert codes(at)[0] == sky.random_bright(0)
    assert f"<b>{NUM_SIMULATED + 1}</b> of {NUM_SIMULATED + 1} objects" in html(at)
    assert "version 2" in html(at)


def test_the_seed_is_shown_with_its_numbers_and_links(
    opened: Any, sky: Sky, with_spectrum: str
) -> None:
    line = sky.object(with_spectrum)

    at = opened(seed=with_spectrum)

    assert codes(at) == [with_spectrum, f"{line['ra_deg']:.6f} {line['dec_deg']:+.6f}"]
    page = html(at)
    assert f"<i>r</i> {line['mag_r']:.2f}" in page
    assert f"{line['redshift']:z.4f} (simulated)" in page
    assert "legacysurvey.org/viewer" in page
    assert "simbad" in page
    assert at.get("vega_lite_chart") or at.get("arrow_vega_lite_chart")


def test_an_object_without_a_spectrum_gets_no_axes(opened: Any, without_spectrum: str) -> None:
    at = opened(seed=without_spectrum)

    assert not at.get("vega_lite_chart")
    assert not at.get("arrow_vega_lite_chart")


def test_a_position_finds_the_object_near_it_and_says_how_far(
    opened: Any, sky: Sky, with_spectrum: str
) -> None:
    line = sky.object(with_spectrum)
    ra_deg, dec_deg = line["ra_deg"], line["dec_deg"]
    assert isinstance(ra_deg, float)
    assert isinstance(dec_deg, float)

    at = opened().text_input(key="ask").set_value(f"{ra_deg:.6f}, {dec_deg + 2 / 3600:.6f}").run()

    assert codes(at)[0] == with_spectrum
    assert "<b>2.00\N{DOUBLE PRIME}</b> from" in html(at)
    assert "2 without a position were not reached" in html(at)
    assert set(params(at)) == {"near"}
    assert codes(opened(**params(at)))[0] == with_spectrum


def test_an_id_in_the_box_becomes_the_seed(opened: Any, with_spectrum: str) -> None:
    at = opened().text_input(key="ask").set_value(f" {with_spectrum} ").run()

    assert params(at) == {"seed": with_spectrum}
    assert codes(at)[0] == with_spectrum


def test_a_text_that_is_nothing_known_is_refused_in_words_and_nothing_is_lost(
    opened: Any,
) -> None:
    at = opened()
    before = params(at)

    at.text_input(key="ask").set_value("NGC 1300").run()

    assert len(at.error) == 1
    assert "No object of this sky has the id" in at.error[0].value.replace("\\", "")
    assert at.text_input(key="ask").value == "NGC 1300"
    assert params(at) == before
    assert any("Sesame" in button.label for button in at.button)


def test_a_predicate_narrows_and_a_wrong_one_is_explained(opened: Any) -> None:
    at = opened().text_input(key="where").set_value("mag_r < 18").run()

    assert 0 < len(at.dataframe[0].value) < NUM_SIMULATED
    assert params(at)["where"] == "mag_r < 18"
    assert all(value < 18 for value in at.dataframe[0].value["mag_r"])

    at.text_input(key="where").set_value("brightness < 18").run()

    assert "unknown column 'brightness'" in at.error[0].value.replace("\\", "")
    assert not at.dataframe


def test_a_predicate_that_leaves_nothing_says_so(opened: Any) -> None:
    at = opened(where="mag_r > 90")

    assert "No object of this sky is left" in at.info[0].value


def test_the_view_is_the_seeds_own_until_another_is_chosen(opened: Any, with_spectrum: str) -> None:
    at = opened(seed=with_spectrum)
    assert at.dataframe[0].value["view"].unique().tolist() == ["image"]

    at = opened(seed=with_spectrum, view="spectrum")

    assert at.dataframe[0].value["view"].unique().tolist() == ["spectrum"]


def test_fewer_results_than_asked_for_are_no_error(opened: Any) -> None:
    at = opened(k="500")

    assert not at.error
    assert len(at.dataframe[0].value) == NUM_SIMULATED + 1


def test_a_display_picture_is_said_to_have_approximate_colours_and_no_position(
    opened: Any,
) -> None:
    page = html(opened(seed="plain"))

    assert "Approximate colours" in page
    assert "no position" in page
    assert "of unknown size" in page
    assert 'class="bar"' not in page


def test_an_id_with_markup_is_only_ever_text(opened: Any) -> None:
    at = opened(seed=HOSTILE)

    assert codes(at)[0] == HOSTILE
    assert HOSTILE not in html(at)


def test_an_unknown_seed_is_explained(opened: Any) -> None:
    at = opened(seed="no such thing")

    assert "no such thing" in at.error[0].value.replace("\\", "")


def test_a_bad_link_is_explained_and_the_page_still_opens(opened: Any) -> None:
    at = opened(k="many")

    assert "k is not a number" in at.warning[0].value.replace("\\", "")
    assert at.dataframe


def test_a_folder_that_is_no_sky_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(MAIN), str(tmp_path)])

    at = AppTest.from_file(str(MAIN), default_timeout=60).run()

    assert not at.exception
    assert "no sky" in at.error[0].value.replace("\\", "")
