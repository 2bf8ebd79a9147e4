"""The report in a real Chromium: offline, on a phone, in the dark, on paper, and under a finger."""

import pytest
from chromium import chromium
from many_candidates import stages

from ropepatch.evals import compare, write_report
from ropepatch.evals.verdict import judge

PHONE, DESKTOP = 360, 1280

# Contrast by WCAG 2.2: of every text, against what is painted behind it.
CONTRASTS = r"""(() => {
  // Computed colours are rgb(…), or rgba(…) with an opacity.
  const rgba = (text) => [...text.match(/[\d.]+/g).map(Number), 1].slice(0, 4);
  const light = (colour) => rgba(colour).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const path = !element.closest(".said") && element.closest(".cell")?.querySelector("path");
    const fill = path && getComputedStyle(path).fill;
    if (fill && fill.startsWith("rgb")) return fill;  // not the hatching of a missing cell
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (rgba(colour)[3] > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  document.querySelectorAll("details").forEach((each) => { each.open = true; });
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest("title, defs")) continue;
    const own = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("");
    if (!own.trim()) continue;
    const style = getComputedStyle(element);
    const [a, b] = [element instanceof SVGElement ? style.fill : style.color, behind(element)]
      .map(light).sort();
    found.push([(b + 0.05) / (a + 0.05), own.trim()]);
  }
  return found;
})()"""

VISIBLE = """[...document.querySelectorAll(".said")]
  .filter((each) => getComputedStyle(each).visibility === "visible"
                    && getComputedStyle(each).display !== "none")
  .map((each) => [...each.querySelectorAll("text")].map((text) => text.textContent).join(" | "))"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = stages()
    others = made[1:]
    return write_report(
        made,
        [compare(made[0], each) for each in others],
        tmp_path_factory.mktemp("report"),
        title="many candidates",
        verdicts=[judge(made[0], each) for each in others],
    )


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def middle_of_cell(page, number):
    """Where the window shows a cell of the first map."""
    page.evaluate('document.querySelectorAll("details").forEach((each) => { each.open = true; })')
    return page.evaluate(
        f"""(() => {{
          const path = document.querySelectorAll(".cell > g:first-of-type")[{number}];
          path.scrollIntoView({{block: "center"}});
          const box = path.getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
    )


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_page_asks_for_nothing_and_nothing_goes_wrong(browser, path, width):
    page = browser.open(path, width=width)
    assert page.evaluate("document.readyState") == "complete"
    assert page.requests() == [path.as_uri()]
    assert page.complaints() == []


@pytest.mark.parametrize("width", [PHONE, 412, 768, DESKTOP])
def test_page_is_never_wider_than_the_window(browser, path, width):
    page = browser.open(path, width=width)
    page.evaluate('document.querySelectorAll("details").forEach((each) => { each.open = true; })')
    assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_every_text_stands_out_from_what_is_behind_it(browser, path, width, dark):
    contrasts = browser.open(path, width=width, dark=dark).evaluate(CONTRASTS)
    assert len(contrasts) > 500
    assert [found for found in contrasts if found[0] < 4.5] == []


def test_dark_mode_is_dark_and_paper_is_not(browser, path):
    background = "getComputedStyle(document.body).backgroundColor"
    assert browser.open(path, width=DESKTOP).evaluate(background) == "rgb(255, 255, 255)"
    dark = browser.open(path, width=DESKTOP, dark=True).evaluate(background)
    assert max(int(part) for part in dark.strip("rgb()").split(",")) < 40
    paper = browser.open(path, width=DESKTOP, dark=True, media="print")
    assert paper.evaluate(background) == "rgb(255, 255, 255)"
    assert all(contrast >= 4.5 for contrast, _ in paper.evaluate(CONTRASTS))


def test_text_of_charts_is_readable_on_a_phone(browser, path):
    page = browser.open(path, width=PHONE)
    page.evaluate('document.querySelectorAll("details").forEach((each) => { each.open = true; })')
    sizes = page.evaluate(
        '[...document.querySelectorAll("svg text")].map((each) => each.getBoundingClientRect().height)'
    )
    assert min(sizes) >= 9


def test_pointing_at_a_cell_shows_its_interval_alone(browser, path):
    page = browser.open(path, width=DESKTOP)
    first = middle_of_cell(page, 0)
    assert page.evaluate(VISIBLE) == []
    page.point_at(*first)
    # Six prompts at the start of the shortest context, which all bring exactly 2 nats.
    assert page.evaluate(VISIBLE) == ["128 tokens, needle at 0 % | 2.00 [2.00, 2.00], 6 prompts"]
    second = middle_of_cell(page, 1)
    page.point_at(*second)
    assert page.evaluate(VISIBLE) == ["128 tokens, needle at 10 % | 1.80 [1.80, 1.80], 6 prompts"]
    page.evaluate('document.querySelectorAll(".cell")[0].focus()')
    assert len(page.evaluate(VISIBLE)) == 1


def test_a_cell_that_has_the_focus_shows_its_interval(browser, path):
    page = browser.open(path, width=DESKTOP)
    middle_of_cell(page, 0)
    page.evaluate('document.querySelectorAll(".cell")[11].focus()')
    assert page.evaluate(VISIBLE) == ["256 tokens, needle at 0 % | 2.00 [2.00, 2.00], 6 prompts"]


def test_a_tap_on_a_phone_shows_the_interval(browser, path):
    page = browser.open(path, width=PHONE)
    page.tap(*middle_of_cell(page, 43))
    assert page.evaluate(VISIBLE) == ["1024 tokens, needle at 100 % | not measured: no prompts"]
    page.tap(*middle_of_cell(page, 11))
    assert page.evaluate(VISIBLE) == ["256 tokens, needle at 0 % | 2.00 [2.00, 2.00], 6 prompts"]
