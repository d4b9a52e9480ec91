"""A box of controls in JupyterLab that keeps its keys.

JupyterLab takes arrow keys and letters on a list or a button for itself: ↓ goes to the next cell, and `dd` deletes this
one. It takes none on an element that has the attribute `data-lm-suppress-shortcuts` (Lumino's `CommandRegistry`). Here
every control has it while a key without Ctrl, Alt or Cmd is pressed: Ctrl+S and Shift+Enter stay JupyterLab's, and so
does Escape.
"""

from IPython.display import Javascript, display
from ipywidgets import VBox

CLASS = "fruitlib-keys"
KEYS = "Keys: Tab goes to the next control; on it the arrow keys choose, and in a list the first letter too."
SCRIPT = """
window.fruitlibKeys ??= window.addEventListener("keydown", event => {
  const ofLab = event.ctrlKey || event.metaKey || event.altKey || event.key === "Escape"
    || (event.shiftKey && event.key === "Enter");
  if (event.target.closest?.(".fruitlib-keys")) {
    event.target.toggleAttribute("data-lm-suppress-shortcuts", !ofLab);
  }
}, true) ?? true;
"""


class KeysBox(VBox):
    """A column of controls on which arrow keys and letters work, as they do outside JupyterLab."""

    def __init__(self, children=(), **options):
        super().__init__(children, **options)
        self.add_class(CLASS)

    def _repr_mimebundle_(self, **options):
        display(Javascript(SCRIPT))
        return super()._repr_mimebundle_(**options)
