"""What drives the pages, on a page of its own: a form that takes its time."""
import pytest

pytest.importorskip("selenium", reason="pip install -e .[e2e]; make test-e2e does it")

from tests.browser.pages import NEEDS_BROWSER, browser  # noqa: E402  after the skip

pytestmark = [pytest.mark.browser, NEEDS_BROWSER]
SLOW_FORM = """<div class="p-label schema-form-property"><label><span>Overrides (Optional)</span></label>
<div id="items"></div><button onclick="setTimeout(() => items.append(document.createElement('textarea')), 700)">Add item
</button></div><label><input type="checkbox" checked>Validate parameters</label>"""


def test_an_item_is_written_into_the_list_however_late_its_box_appears(tmp_path):
    (tmp_path / "form.html").write_text(SLOW_FORM)
    with browser() as page:
        page.open((tmp_path / "form.html").as_uri()).add("Overrides", "rounds=2", "seed=1")
        assert [box.get_property("value") for box in page.inputs("Overrides")] == ["rounds=2", "seed=1"]
