"""Kernels in a real JupyterLab: nothing that was run is lost, and what loops is interrupted, with either kernel.

The server was started by a script that ignores interrupts, as one is that goes on in the background.
"""

import lab_server
import pytest

pytestmark = pytest.mark.slow
LABELS = dict(zip(lab_server.KERNELS, ("Python 3 (ipykernel)", "fruitlib (warm)"), strict=True))
PROMPTS = ".jp-CodeCell .jp-InputPrompt"
OUTPUT = ".jp-OutputArea-output"
EXECUTED_IN_ANOTHER = """pid => {
    const texts = selector => [...document.querySelectorAll(selector)].map(element => element.innerText);
    const [now, ...others] = texts(".jp-OutputArea-output");
    return others.length === 2 && now !== pid && texts(".jp-CodeCell .jp-InputPrompt").every(
        (prompt, place) => prompt === `[${place + 1}]:`);
}"""
SOON = 2_000  # milliseconds in which an interrupt is over
KERNEL_MENU = '.lm-Menu-item[data-command="kernelmenu:interrupt"]'


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The folder of a JupyterLab and its address."""
    root = tmp_path_factory.mktemp("kernels")
    (root / "work").mkdir()
    with lab_server.jupyterlab(root / "work", root, ignores_interrupts=True, FRUITLIB_HOME=str(root)) as (_, address):
        yield root / "work", address


@pytest.fixture
def page(browser):
    opened = browser.new_page(viewport={"width": 1300, "height": 900})
    yield opened
    opened.close()


def choose_kernel(page, name: str) -> None:
    page.locator(".jp-Toolbar-kernelName").click()
    page.locator(".jp-Dialog select").select_option(label=LABELS[name])
    page.locator(".jp-Dialog .jp-mod-accept").click()


def test_run_all_is_not_lost_however_soon_it_follows_the_choice_of_a_kernel(lab, page):
    work, address = lab
    lab_server.write_notebook(
        work / "all.ipynb", ["import os; print(os.getpid())", "1 + 1", "print('three')"], "python3"
    )
    lab_server.open_notebook(page, address, "all.ipynb")
    known = [""]  # the pids of kernels
    for wait in (0, 500, 1500):  # milliseconds
        for kernel in reversed(lab_server.KERNELS):
            choose_kernel(page, kernel)
            page.wait_for_timeout(wait)
            lab_server.run_all(page)
            page.wait_for_function(EXECUTED_IN_ANOTHER, arg=known[-1], timeout=60_000)
            pid, *others = page.locator(OUTPUT).all_inner_texts()
            assert others == ["2", "three\n"] and pid not in known
            assert page.locator(".jp-Toolbar-kernelName").inner_text() == LABELS[kernel]
            known.append(pid)


def by_button(page) -> None:
    page.locator('[data-jp-item-name="interrupt"] jp-button').click()


def by_menu(page) -> None:
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.locator(KERNEL_MENU).click()


def by_keys(page) -> None:
    page.locator(PROMPTS).first.click()  # the cell is selected, and its text not edited
    page.keyboard.press("i")
    page.keyboard.press("i")


@pytest.mark.parametrize("kernel", lab_server.KERNELS)
def test_a_loop_is_interrupted_though_the_server_ignores_interrupts(lab, page, kernel):
    work, address = lab
    loop = "import time\nprint('begun')\nwhile True:\n    time.sleep(0.05)"
    lab_server.write_notebook(work / f"loop {kernel}.ipynb", [loop], kernel)
    lab_server.open_notebook(page, address, f"loop {kernel}.ipynb")
    for number, interrupt in enumerate((by_button, by_menu, by_keys), 1):
        lab_server.run_all(page)
        page.locator(OUTPUT, has_text="begun").wait_for(timeout=60_000)
        page.wait_for_function("document.querySelector('.jp-CodeCell .jp-InputPrompt').innerText === '[*]:'")
        interrupt(page)
        page.locator(OUTPUT, has_text="KeyboardInterrupt").wait_for(timeout=SOON)
        page.locator(PROMPTS, has_text=f"[{number}]").wait_for(timeout=SOON)
