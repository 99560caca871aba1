"""The web page, in a headless Chromium, against the real server."""

import contextlib
import json
import os
import re
import shutil
import threading
import time

import pytest

from colbert_zero.data.documents import documents_of
from colbert_zero.serving.index.building import Settings, build
from helpers import DOCUMENTS

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser: pip install playwright")
pytest.importorskip("uvicorn", reason="needs the extra serve")
expect = playwright.expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the PATH")

SECONDS = 20
HOSTILE = '<script>document.title = "taken"</script><img src=x onerror="document.title=`taken`"> wing &amp; "drag" <b>'
EMOJI = "🦋🦋 A butterfly's wing 🦋 in a wind tunnel."
LONG = "supercalifragilistic" * 12
NUMBERS = [1958.0, 1e20, 1e-7, 2**53 + 1, 2**53 + 3]
ROWS = [
    *({"_id": key, "text": text, "length": len(text) // 40} for key, text in DOCUMENTS.items()),
    {"_id": "<i>hostile</i>", "text": HOSTILE, "length": 9, "kind": "<u>odd</u>"},
    {"_id": "emoji", "text": EMOJI, "kind": "odd"},
    *({"_id": f"number {n}", "text": "A wing.", "number": n} for n in NUMBERS),
    {"_id": "titled", "title": "Wings", "text": f"of birds. {LONG}", "kind": "plain"},
]


def quiet(*_):
    pass


def write_index(folder, model, rows, **settings):
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(str(folder / "model"), documents_of([str(path)], "corpus"), folder / "index", Settings(**settings), quiet)
    return folder / "index"


@contextlib.contextmanager
def served(folder, key=None, **limits):
    """The address of a server of an index."""
    import uvicorn

    from colbert_zero.serving.http.api import make_app
    from colbert_zero.serving.http.server import bind
    from colbert_zero.serving.http.service import Limits, Service

    app = make_app(Service(folder, Limits(**limits), tell=quiet), key)
    with bind("127.0.0.1", 0) as bound:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def index(tiny_multi_vector, tmp_path_factory):
    return write_index(tmp_path_factory.mktemp("index"), tiny_multi_vector, ROWS)


@pytest.fixture(scope="module")
def address(index):
    with served(index) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, address):
    """Open the page: `opened("?q=wing", width=360)`. No test may leave an error or a CSP violation in the console."""
    contexts, problems = [], []

    def open_page(query="", to=address, width=1200, scheme="light", allowed="^$"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        bad = [problems.append, lambda text: None]
        page.on("console", lambda m: bad[m.type != "error" or bool(re.search(allowed, m.text))](m.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(to + query)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


def until(page, true):
    """Wait for something that no locator waits for."""
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        page.wait_for_timeout(20)


def ids(page):
    """The results' ids in their order; each has no title but its own id, or is `titled`."""
    return [title if title != "Wings" else "titled" for title in page.locator("h2 .title").all_inner_texts()]


def explained(page):
    expect(page.locator("#legend button").first).to_be_visible()


def found_by(page, query, **asked):
    return page.request.post(page.url.split("?")[0] + "search", data={"query": query, **asked}).json()["hits"]


def shows(page, query, **asked):
    """Wait until a query's results stand there."""
    expect(page.locator("h2 .title")).to_have_text([hit["id"] for hit in found_by(page, query, **asked)])


# ---- Searching


def test_results_appear_while_one_types_and_in_the_index_s_order(opened):
    page = opened()
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/search") else None)
    expect(page.locator("#start")).to_be_visible()
    expect(page.get_by_role("searchbox", name="Search")).to_be_focused()
    page.keyboard.type("lift of a wing", delay=15)
    expect(page.get_by_role("status")).to_have_text(re.compile(r"^10 results in [\d.]+ m?s"))
    explained(page)
    assert ids(page) == [hit["id"] for hit in found_by(page, "lift of a wing")]
    assert len(asked) < len("lift of a wing")
    assert page.url.endswith("?q=lift+of+a+wing")


def test_a_late_answer_to_an_older_query_replaces_nothing(opened):
    page, held = opened(allowed="ERR_FAILED"), []
    page.route("**/search", lambda route: held.append(route))
    box = page.get_by_role("searchbox")
    for count, query in enumerate(["wing", "oxygen in blood"], 1):
        box.fill(query)
        until(page, lambda count=count: len(held) == count)
    first, second = held
    assert [route.request.post_data_json["query"] for route in held] == ["wing", "oxygen in blood"]
    second.continue_()
    shows(page, "oxygen in blood")
    with contextlib.suppress(playwright.Error):
        first.continue_()
    explained(page)
    shows(page, "oxygen in blood")
    assert page.locator("#legend .label").all_inner_texts()[:3] == ["oxygen", "in", "blood"]


def test_the_address_holds_the_query_and_the_back_button_returns(opened):
    asked = {"where": {"length": "1"}, "k": 3}
    page = opened("?q=oxygen+in+blood&where.length=1&why=oxygen&k=3")
    shows(page, "oxygen in blood", **asked)
    expect(page.get_by_role("combobox", name="length")).to_have_value("1")
    page.locator("h2 button").nth(1).click()
    expect(page.locator("h2 button").nth(1)).to_have_attribute("aria-expanded", "true")
    address = page.url
    page.get_by_role("searchbox").fill("wing")
    shows(page, "wing", where={"length": "1"})
    assert page.url.endswith("?q=wing&where.length=1")
    page.go_back()
    shows(page, "oxygen in blood", **asked)
    expect(page.get_by_role("searchbox")).to_have_value("oxygen in blood")
    expect(page.locator("h2 button").nth(1)).to_have_attribute("aria-expanded", "true")
    assert page.url == address
    page.go_back()
    expect(page.locator("h2 button").nth(1)).to_have_attribute("aria-expanded", "false")


def test_metadata_choose_documents(opened):
    page = opened("?q=wing")
    page.get_by_role("combobox", name="kind").select_option("odd")
    expect(page.locator(".hit")).to_have_count(1)
    assert ids(page) == ["emoji"]
    assert "where.kind=odd" in page.url
    page.go_back()
    expect(page.locator(".hit")).to_have_count(10)
    page.locator(".hit", has_text="<i>hostile</i>").get_by_role("button", name="kind <u>odd</u>").click()
    expect(page.locator(".hit")).to_have_count(1)
    page.get_by_role("combobox", name="length").select_option("1")
    expect(page.get_by_role("status")).to_contain_text("No document has")
    page.get_by_role("button", name="Search without filters").click()
    expect(page.locator(".hit")).to_have_count(10)


def test_numbers_choose_documents_from_the_list_and_from_a_result(opened):
    page = opened("?q=A+wing.&k=100")
    for number in NUMBERS:
        hit = page.locator(".hit", has_text=f"number {number}")
        hit.get_by_role("button", name=re.compile("^number ")).last.click()
        expect(page.locator(".hit")).to_have_count(1)
        assert ids(page) == [f"number {number}"]
        page.go_back()
        expect(page.locator(".hit").nth(1)).to_be_visible()
    select = page.get_by_role("combobox", name="number")
    for value in select.locator("option").evaluate_all("all => all.map(e => e.value).filter(Boolean)"):
        select.select_option(value)
        expect(page.locator(".hit")).to_have_count(1)


@pytest.mark.slow
def test_more_results_come_when_asked_for(opened):
    page = opened("?q=wing")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".hit")).to_have_count(20)
    assert ids(page) == [hit["id"] for hit in found_by(page, "wing", k=20)]


# ---- Why


def test_bars_sum_to_the_score_and_are_as_long_as_what_they_stand_for(opened):
    page = opened("?q=lift+and+drag+of+a+wing&why=drag")
    explained(page)
    hit = next(hit for hit in found_by(page, "lift and drag of a wing") if hit["id"] == "drag")
    bars = page.locator(".why [data-part]")
    expect(bars.first).to_be_visible()
    parts = [float(part) for part in bars.evaluate_all("bars => bars.map(bar => bar.dataset.part)")]
    widths = bars.evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert sum(parts) == pytest.approx(hit["score"], abs=1e-3)
    assert [width / max(widths) for width in widths] == pytest.approx([part / max(parts) for part in parts], abs=0.02)
    assert float(page.locator("tfoot .amount").inner_text()) == pytest.approx(hit["score"], abs=1e-3)
    lefts = bars.evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().left)")
    assert max(lefts) - min(lefts) < 0.5
    assert page.locator("tbody th .label").all_inner_texts()[:6] == ["lift", "and", "drag", "of", "a", "wing"]


@pytest.mark.parametrize(
    "document",
    ["emoji", "titled", *(pytest.param(name, marks=pytest.mark.slow) for name in ("drag", "<i>hostile</i>"))],
)
def test_every_shade_is_of_the_query_s_word_that_chose_it_and_says_so(opened, document):
    query = "a wing 🦋 & drag"
    page = opened("?q=a+wing+🦋+%26+drag&k=40")
    explained(page)
    hit = page.request.post(page.url.split("?")[0] + "explain", data={"query": query, "id": document}).json()
    parts, text = hit["explanation"]["parts"], hit["text"]
    page.locator("h2 button").nth(ids(page).index(document)).click()
    region = page.get_by_role("region", name=re.compile("^Text of result"))
    expect(region.locator(".shade").first).to_be_visible()
    title = "Wings" if document == "titled" else ""
    assert region.evaluate("region => region.textContent") == text[len(title) :].lstrip()
    words = {(word["begin"], word["end"]): word for word in hit["explanation"]["words"]}
    chosen = {}
    for part in parts:
        if part["begin"] is not None:
            chosen.setdefault((part["begin"], part["end"]), []).append(part)

    def name(part):
        return query[slice(*part["query"])] if part["query"] else part["token"]

    marked = region.locator(".shade").evaluate_all(
        "all => all.map(e => [e.textContent, e.title, e.tagName, e.dataset.number ?? null])"
    )
    spans = sorted(span for span in {*words, *chosen} if span[0] >= len(title))
    assert [text[begin:end] for begin, end in spans] == [mark[0] for mark in marked]
    numbers = page.locator("#legend .word").evaluate_all(
        "all => all.map(e => [...e.children].map(c => c.textContent).join(' '))"
    )
    for span, (_, said, tag, number) in zip(spans, marked, strict=True):
        if span in chosen:
            best = max(chosen[span], key=lambda part: (part["query"] is not None, part["score"]))
            assert tag == "MARK"
            assert said.startswith("chosen by ")
            assert name(best) in said
            assert f"{number} {name(best)}" in " | ".join(numbers)
        else:
            assert said.startswith(f"nearest to {name(parts[words[span]['token']])}")


def test_one_word_s_matches_are_shown_alone(opened):
    page = opened("?q=drag+of+a+wing&why=drag")
    explained(page)
    expect(page.locator(".why mark").first).to_be_visible()
    page.locator("#legend").get_by_role("button", name="drag").click()
    assert page.locator(".why tbody tr:not(.away) .label").all_inner_texts() == ["drag"]
    assert page.locator(".why mark:not(.away)").count() == 1
    page.keyboard.press("Escape")
    assert page.locator(".away").count() == 0


def test_text_that_the_model_did_not_read_is_grey(opened, tiny_multi_vector, tmp_path):
    text = " ".join(DOCUMENTS.values())
    with served(write_index(tmp_path, tiny_multi_vector, [{"_id": "long", "text": text}])) as address:
        page = opened("?q=wing&why=long", to=address)
        unread = page.locator(".why .unread").first
        expect(unread).to_be_visible()
        assert text.endswith(unread.evaluate("e => e.textContent"))
        page.close()


@pytest.mark.slow
def test_a_dense_index_says_that_no_word_has_a_part(opened, tiny_dense, tmp_path):
    with served(write_index(tmp_path, tiny_dense, ROWS[:5])) as address:
        page = opened("?q=wing&why=drag", to=address)
        expect(page.locator(".why:not([hidden])")).to_contain_text("one vector a text")
        expect(page.locator(".why:not([hidden])")).to_contain_text(DOCUMENTS["drag"])
        assert page.locator("#legend button").count() == 0
        page.close()


# ---- Safe


def test_a_document_s_markup_stays_text(opened):
    page = opened("?q=%3Cscript%3E+wing&where.kind=%3Cu%3Eodd%3C%2Fu%3E&why=%3Ci%3Ehostile%3C%2Fi%3E")
    explained(page)
    expect(page.locator(".why mark").first).to_be_visible()
    assert ids(page) == ["<i>hostile</i>"]
    assert page.locator(".why .text").evaluate("text => text.textContent") == HOSTILE
    assert page.locator("main :is(script, img, i, u, b)").count() == 0
    assert page.title() == "<script> wing · ColBERT-Zero"


def test_the_policy_stops_a_script_that_gets_in(opened):
    page = opened(allowed="Content Security Policy")
    page.evaluate("""() => {
        document.addEventListener("securitypolicyviolation", (event) => { window.stopped = event.effectiveDirective; });
        const script = document.createElement("script");
        script.textContent = "window.taken = true";
        document.body.append(script);
    }""")
    until(page, lambda: page.evaluate("window.stopped") == "script-src-elem")
    assert page.evaluate("window.taken") is None


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(opened, address):
    page = opened()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.get_by_role("searchbox").fill("wing")
    explained(page)
    assert asked
    assert all(url.startswith((address, "data:")) for url in asked)


# ---- Usable by all


def test_it_works_by_keyboard(opened):
    page = opened("?q=oxygen+in+blood")
    explained(page)
    button = page.locator("h2 button")
    page.keyboard.press("ArrowDown")
    expect(button.nth(0)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(button.nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(button.nth(1)).to_have_attribute("aria-expanded", "true")
    expect(page.locator(".why table")).to_be_visible()
    expect(button.nth(1)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".why table")).to_have_count(0)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("a/b")
    expect(page.get_by_role("searchbox")).to_have_value("a/b")


def test_a_screen_reader_hears_names_roles_and_states(opened):
    page = opened("?q=wing&why=lift")
    explained(page)
    expect(page.locator(".why table")).to_be_visible()
    heard = page.locator("body").aria_snapshot()
    for line in ("banner:", 'heading "ColBERT-Zero" [level=1]', "main:", "search:", 'searchbox "Search"', "status:",
                 'combobox "kind"', 'list "Results"', "contentinfo:", 'rowheader "wing"', 'columnheader "adds"',
                 'table "What each word of the query adds'):  # fmt: skip
        assert line in heard, line
    assert re.search(r'button "lift score [\d.]+" \[expanded\]', heard)
    assert page.locator("button, input, select").evaluate_all(
        "all => all.filter(e => !e.hidden && !(e.innerText || e.labels?.length || e.ariaLabel)).length"
    ) == 0  # fmt: skip
    assert page.locator("html").get_attribute("lang") == "en"


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const over = (below, colour) => {
        canvas.fillStyle = `rgb(${below})`; canvas.fillRect(0, 0, 1, 1);
        canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (rgb) => rgb.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
    const behind = (element) => {
        const below = element.parentElement ? behind(element.parentElement) : [255, 255, 255];
        return over(below, getComputedStyle(element).backgroundColor);
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
        if (element.closest("option, noscript")) continue;
        const back = behind(element);
        const [one, other] = [light(back), light(over(back, getComputedStyle(element).color))].sort((a, b) => b - a);
        found.push([(one + 0.05) / (other + 0.05), walker.currentNode.data]);
    }
    return found.sort((a, b) => a[0] - b[0]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_by_4_5_to_1(opened, scheme):
    page = opened("?q=lift+and+drag+of+a+wing+in+a+body&k=40&why=lift", scheme=scheme)
    explained(page)
    expect(page.locator(".why mark").first).to_be_visible()
    found = page.evaluate(CONTRAST)
    assert len(found) > 50
    assert found[0][0] >= 4.5, found[:5]


def test_light_and_dark_are_the_system_s_until_one_is_chosen(opened):
    dark = opened(scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    black = dark.evaluate(paper)
    white = opened(scheme="light").evaluate(paper)
    assert black != white
    dark.get_by_role("button", name="Light").click()
    assert dark.evaluate(paper) == white
    dark.reload()
    assert dark.evaluate(paper) == white
    dark.get_by_role("button", name="Dark").click()
    assert dark.evaluate(paper) == black


@pytest.mark.parametrize("document", ["titled", "lift"])
def test_it_fits_a_phone(opened, document):
    page = opened(f"?q=the+wings+of+{'long' * 30}+birds&k=40&why={document}", width=360)
    explained(page)
    expect(page.locator(".why table")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    beyond = (
        "all => all.filter(e => e.getBoundingClientRect().right > 361 && e.checkVisibility()).map(e => e.outerHTML)"
    )
    assert page.locator("main *:not(.unseen)").evaluate_all(beyond) == []


# ---- When something is wrong


@pytest.mark.slow
def test_a_key_is_asked_for_and_kept_until_the_tab_is_closed(opened, index):
    with served(index, key="open sesame") as address:
        page = opened("?q=oxygen", to=address, allowed="401")
        page.get_by_label("This server asks for a key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("refused this key")
        page.get_by_label("This server asks for a key").fill("open sesame")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator(".hit")).to_have_count(10)
        expect(page.locator("#ask-key")).to_be_hidden()
        page.reload()
        explained(page)
        page.close()


def test_a_server_that_is_gone_is_told_and_asked_again(opened):
    page = opened(allowed="ERR_CONNECTION_REFUSED")
    page.clock.install()
    page.route("**/search", lambda route: route.abort("connectionrefused"))
    page.get_by_role("searchbox").fill("oxygen")
    page.clock.run_for(1000)
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    page.unroute("**/search")
    page.clock.run_for(4000)
    shows(page, "oxygen")
    expect(page.get_by_role("alert")).to_be_empty()
    page.clock.run_for(1000)
    explained(page)
    page.route("**/search", lambda route: route.abort("connectionrefused"))
    page.get_by_role("searchbox").press("Enter")
    page.clock.run_for(1000)
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    assert page.locator("#legend button").count() == 0
    page.unroute("**/search")
    page.clock.run_for(4000)
    shows(page, "oxygen")
    page.clock.run_for(1000)
    explained(page)


@pytest.mark.slow
def test_a_busy_server_is_asked_again_when_it_says(opened):
    page, answers = opened(allowed="503"), iter([503])
    body = {"error": {"code": "queue_full", "message": "as many requests wait as may", "place": None}}

    def answer(route):
        status = next(answers, None)
        if status is None:
            route.continue_()
        else:
            route.fulfill(status=status, headers={"Retry-After": "1"}, json=body)

    page.route("**/search", answer)
    page.get_by_role("searchbox").fill("oxygen")
    expect(page.get_by_role("alert")).to_contain_text("as many requests wait as may")
    shows(page, "oxygen")


@pytest.mark.slow
def test_a_slow_network_is_told(opened):
    page, held = opened(), []
    page.clock.install()
    page.route("**/search", lambda route: held.append(route))
    page.get_by_role("searchbox").fill("oxygen")
    page.clock.run_for(1000)
    until(page, lambda: held)
    page.clock.run_for(6000)
    expect(page.get_by_role("status")).to_contain_text("Still searching")
    held[0].continue_()
    shows(page, "oxygen")


@pytest.mark.slow
def test_a_refusal_is_shown_in_the_server_s_words(opened):
    page = opened(f"?q={'a' * 10_001}", allowed="422")
    expect(page.get_by_role("alert")).to_contain_text("at most 10000 characters")
    page.get_by_role("searchbox").fill("oxygen")
    shows(page, "oxygen")
    expect(page.get_by_role("alert")).to_be_empty()


@pytest.mark.slow
def test_an_explanation_that_fails_leaves_the_results(opened):
    page = opened(allowed="504")
    body = {"error": {"code": "too_long", "message": "not answered within 1 s", "place": None}}
    page.route("**/explain", lambda route: route.fulfill(status=504, json=body))
    page.get_by_role("searchbox").fill("oxygen")
    shows(page, "oxygen")
    page.locator("h2 button").first.click()
    expect(page.locator(".why:not([hidden])")).to_contain_text("not answered within 1 s")
    expect(page.locator(".why:not([hidden])")).to_contain_text(DOCUMENTS[ids(page)[0]])


@pytest.mark.slow
def test_what_an_index_lacks_is_noted(opened, index, tmp_path):
    shutil.copytree(index, tmp_path / "index")
    next((tmp_path / "index" / "segments").glob("*/tokens")).write_bytes(b"")
    with served(tmp_path / "index") as address:
        page = opened("?q=wing", to=address)
        expect(page.locator("#notes")).to_contain_text("damaged")
        expect(page.get_by_role("status")).to_contain_text("Nothing found")
        page.close()
