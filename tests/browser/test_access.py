"""The pages of an executed sweep in a browser: every notebook's, as axe-core and a phone see them."""

import pytest

# width of the screen, colours, and axe's rules that these can change (null: all)
LOOKS = [(1300, "light", "null"), (1300, "dark", "['color-contrast']")]
LOOKS += [(390, "light", "['scrollable-region-focusable', 'target-size', 'landmark-unique']")]
CODE = "(fold) => fold.querySelector('.highlight')"  # a second of axe's time on every page, and on each the same


@pytest.fixture(scope="module")
def pages(finished_sweep):
    """One page of each notebook, and the one that failed."""
    folder = finished_sweep / "executed" / "tiny"
    of_runs = sorted(folder.glob("*/0*.html"))
    pages = {path.name: path for path in [*folder.glob("0*.html"), *of_runs] if "lr=10" not in path.parent.name}
    failed = [path for path in of_runs if "lr=10" in path.parent.name]
    assert {name[:2] for name in pages} >= {"01", "02", "03", "04", "05", "07", "08"} and failed
    return [*pages.values(), failed[0]]


def test_every_page_is_accessible_and_no_wider_than_the_screen(browser, pages):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page, found = browser.new_page(), []
    for path in pages:
        page.goto(path.as_uri())
        closed = CODE if path != pages[0] else "() => false"
        page.evaluate(f"document.querySelectorAll('details').forEach((each) => {{ each.open = !({closed})(each); }})")
        page.evaluate(axe.axe_script)
        for width, colours, rules in LOOKS:
            page.set_viewport_size({"width": width, "height": 844})
            page.emulate_media(color_scheme=colours)
            script = f"axe.run(Object.assign({{resultTypes: ['violations']}}, {rules} && {{runOnly: {rules}}}))"
            violations = page.evaluate(script)["violations"]
            found += [(path.name, width, colours, one["id"], one["nodes"][0]["html"]) for one in violations]
            wide = page.evaluate("document.documentElement.scrollWidth")
            found += [(path.name, "wide", wide)] if wide > width else []
    page.close()
    assert found == []
