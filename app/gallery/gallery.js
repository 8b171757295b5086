// A grid of cutouts. What comes from data is only ever text (textContent), an attribute, or a number.

const SVG = "http://www.w3.org/2000/svg";
const TAIL = 6; // last characters of a long id that are always shown: they tell neighbours apart

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function stamp(card, span) {
  const box = element("div", "stamp");
  if (card.picture) {
    const picture = element("img");
    picture.src = card.picture;
    picture.alt = "";
    picture.decoding = "async";
    picture.draggable = false;
    box.append(picture);
  } else {
    box.append(element("div", "missing", card.missing));
    if (card.curve.length) box.append(curve(card.curve, span));
  }
  box.append(element("span", "rank", String(card.rank)));
  return box;
}

function curve(points, [low, high]) {
  const drawn = document.createElementNS(SVG, "svg");
  drawn.setAttribute("class", "curve");
  drawn.setAttribute("viewBox", "0 0 100 40");
  drawn.setAttribute("preserveAspectRatio", "none");
  drawn.setAttribute("aria-hidden", "true");
  const fluxes = points.map((point) => point[1]);
  const bottom = Math.min(...fluxes);
  const range = Math.max(...fluxes) - bottom || 1;
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute(
    "points",
    points
      .map(([x, y]) => `${(100 * (x - low)) / (high - low || 1)},${37 - (34 * (y - bottom)) / range}`)
      .join(" "),
  );
  drawn.append(line);
  return drawn;
}

function caption(card) {
  const box = element("div", "caption");
  const score = element("div", "score");
  score.append(element("span", "", card.score), element("span", "tag", card.tag));
  box.append(score);
  if (card.facts.length) {
    const facts = element("div", "facts");
    for (const [name, value] of card.facts) {
      const fact = element("span");
      fact.append(element("i", "", name), ` ${value}`);
      facts.append(fact);
    }
    box.append(facts);
  }
  const id = element("div", "id");
  const cut = Math.max(0, card.id.length - TAIL);
  id.append(element("span", "head", card.id.slice(0, cut)), element("span", "tail", card.id.slice(cut)));
  box.append(id);
  return box;
}

function describe(card) {
  const facts = card.facts.map(([name, value]) => `${name} ${value}`).join(", ");
  return `Rank ${card.rank}: object ${card.id}, score ${card.score}${facts ? `, ${facts}` : ""}`;
}

// Arrow keys move between cards as they stand on the screen.
function move(cards, from, key) {
  const columns = cards.filter((card) => card.offsetTop === cards[0].offsetTop).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[key];
  cards[from + step]?.focus();
}

export default function ({ data, parentElement, setTriggerValue }) {
  const grid = parentElement.querySelector(".grid");
  const more = parentElement.querySelector(".more");
  const focused = grid.getRootNode().activeElement?.dataset?.id;
  const wavelengths = data.cards.flatMap((card) => card.curve.map((point) => point[0]));
  const span = wavelengths.length
    ? wavelengths.reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity])
    : [0, 1];

  const buttons = data.cards.map((card) => {
    const button = element("button", "card");
    button.type = "button";
    button.title = card.id;
    button.dataset.id = card.id;
    button.setAttribute("aria-label", `${describe(card)}. Show what is like it.`);
    button.append(stamp(card, span));
    if (card.picture && card.curve.length) button.append(curve(card.curve, span));
    button.append(caption(card));
    button.onclick = () => {
      button.setAttribute("aria-busy", "true");
      setTriggerValue("picked", card.id);
    };
    return button;
  });
  buttons.forEach((button, place) => {
    button.onkeydown = (event) => {
      if (!event.key.startsWith("Arrow")) return;
      event.preventDefault();
      move(buttons, place, event.key);
    };
  });
  grid.replaceChildren(
    ...buttons.map((button) => {
      const item = element("li");
      item.append(button);
      return item;
    }),
  );
  buttons.find((button) => button.dataset.id === focused)?.focus({ preventScroll: true });

  if (grid.dataset.of && grid.dataset.of !== data.of) {
    grid.getRootNode().host?.closest('[data-testid="stMain"]')?.scrollTo({ top: 0 });
  }
  grid.dataset.of = data.of;

  more.hidden = !data.more;
  more.textContent = data.more;
  more.onclick = () => setTriggerValue("more", true);
}
