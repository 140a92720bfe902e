"""Buttons and sliders that follow a FaultPanel and decide nothing; a text twin where there are no widgets."""

import html
import math
from typing import Any

import ipywidgets as widgets

from labkit.lab.boards import link_picture
from labkit.lab.boards.fault_panel import DIRECTIONS, SWITCHES, FaultPanel, Switch

NAME_WIDTH = "10em"
MARK_WIDTH = "2.5em"
SAYS_WIDTH = "17em"


class FaultPanelView(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """The link and where it is broken, a row for each fault, what happened last (Tab to a button, Space to press it).

    Its ``text/plain`` is :meth:`FaultPanel.twin`, whole: what nbval compares and a reader without widgets gets.
    """

    def __init__(self, panel: FaultPanel) -> None:
        self.panel = panel
        self.directions = widgets.ToggleButtons(
            options=list(DIRECTIONS),
            value=panel.direction,
            description="Break:",
            tooltips=["both directions", "what goes to the broker", "what goes to the client"],
            style=widgets.ToggleButtonsStyle(button_width="auto"),
        )
        self.toggles = {name: _toggle(switch) for name, switch in SWITCHES.items()}
        # A word of its own, not the button's icon: a screen reader would read the glyph as part of the name.
        self.marks = {name: widgets.Label(layout=_column(MARK_WIDTH)) for name in SWITCHES}
        self.sliders = {name: slider for name, switch in SWITCHES.items() if (slider := _slider(switch)) is not None}
        self.picture = widgets.HTML()
        self.note = widgets.HTML()
        super().__init__(children=(self.picture, self._once(), self.directions, *map(self._row, SWITCHES), self.note))
        self._follow()
        panel.observe(self._follow, names=["on", "direction", "amounts", "said", "failed"])
        self._listen()

    def _once(self) -> widgets.HBox:
        """Return the buttons for what happens once, at the moment of the click."""
        self.cut = widgets.Button(description="Cut", tooltip="End every open link: end of file")
        self.reset = widgets.Button(description="Reset", tooltip="End every open link: TCP reset")
        self.all_off = widgets.Button(description="All off", tooltip="End every fault; what was held back passes")
        return widgets.HBox((self.cut, self.reset, self.all_off))

    def _row(self, name: str) -> widgets.HBox:
        says = widgets.HTML(html.escape(SWITCHES[name].says), layout=widgets.Layout(width=SAYS_WIDTH))
        slider = (self.sliders[name],) if name in self.sliders else ()
        return widgets.HBox(
            (self.toggles[name], self.marks[name], says, *slider), layout=widgets.Layout(align_items="center")
        )

    def _listen(self) -> None:
        panel = self.panel
        self.cut.on_click(lambda _: panel.attempt(panel.cut))
        self.reset.on_click(lambda _: panel.attempt(panel.cut, reset=True))
        self.all_off.on_click(lambda _: panel.attempt(panel.all_off))
        self.directions.observe(self._change_direction, names=["value"])
        for name, toggle in self.toggles.items():
            toggle.observe(lambda change, name=name: self._press(name, change["new"]), names=["value"])
        for name, slider in self.sliders.items():
            slider.observe(lambda change, name=name: self._slide(name, change["new"]), names=["value"])

    # What the view itself sets comes back here too; it is what the panel already says, so nothing happens.

    def _press(self, name: str, pressed: bool) -> None:
        if pressed != (name in self.panel.on):
            self.panel.attempt(self.panel.switch_on if pressed else self.panel.switch_off, name)
            self._follow()  # a button that could not do what it says springs back

    def _slide(self, name: str, value: float) -> None:
        if value != self.panel.amounts[name]:
            self.panel.attempt(self.panel.set_amount, name, value)
            self._follow()

    def _change_direction(self, change: Any) -> None:
        if change["new"] != self.panel.direction:
            self.panel.attempt(self.panel.set_direction, change["new"])
            self._follow()

    def _follow(self, _change: Any = None) -> None:
        panel = self.panel
        for name, toggle in self.toggles.items():
            toggle.value = name in panel.on
            # On is a warning, not a shade of off; and a state is never shown by colour alone.
            toggle.button_style = "warning" if toggle.value else ""
            self.marks[name].value = "on" if toggle.value else "off"
        for name, slider in self.sliders.items():
            slider.value = panel.amounts[name]
        self.directions.value = panel.direction
        self.picture.value = link_picture.draw(panel.on, panel.direction)
        # A screen reader announces it when it changes.
        said = f"<strong>Not done.</strong> {html.escape(panel.said)}" if panel.failed else html.escape(panel.said)
        self.note.value = f'<div role="status" aria-live="polite">{said}</div>'

    def __repr__(self) -> str:
        return self.panel.twin()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**options)
        # ipywidgets cuts the text after 110 characters.
        bundle["text/plain"] = self.panel.twin()
        return bundle


def _toggle(switch: Switch) -> widgets.ToggleButton:
    return widgets.ToggleButton(description=switch.name, tooltip=switch.says, layout=_column(NAME_WIDTH))


def _column(width: str) -> widgets.Layout:
    """Return a width that is kept in a narrow window, so that the rows stand under each other."""
    return widgets.Layout(width=width, flex="none")


def _slider(switch: Switch) -> Any:
    amount = switch.amount
    if amount is None:
        return None
    common = {
        "value": amount.at_first,
        "description": f"{amount.name}, {amount.unit}",
        "continuous_update": False,  # a fault begins afresh with each value: one at the end of a drag
        "style": {"description_width": "6.5em"},
    }
    if not amount.step:
        return widgets.FloatLogSlider(
            min=math.log10(amount.least), max=math.log10(amount.most), step=0.5, readout_format=",.0f", **common
        )
    if isinstance(amount.at_first, int) and float(amount.step).is_integer():
        return widgets.IntSlider(min=amount.least, max=amount.most, step=amount.step, **common)
    return widgets.FloatSlider(min=amount.least, max=amount.most, step=amount.step, **common)
