"""Public archives: what lies at a list of positions comes into a folder, checked.

A folder beside surveys/, not a module in it: a survey is how files are read, an archive is how
they are got, and neither needs the other. `fetching` is the way in.
"""
