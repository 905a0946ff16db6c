"""A seeded shop with shoppers that behave: for demos, load and closed-loop tests, when there is no real traffic at hand."""
