// A layer's part of the panel: a box to tick, and what belongs to it below while it is ticked.

import { element, problem } from "./page.js";

export function layerSection(title, act) {
  const inner = element("div", { class: "inner", hidden: true });
  const box = element("input", {
    type: "checkbox",
    onchange: async () => {
      inner.hidden = !box.checked || !inner.childElementCount;
      try {
        await act(box.checked, inner);
        inner.hidden = !box.checked || !inner.childElementCount;
      } catch (error) {
        inner.hidden = false;
        inner.replaceChildren(problem(error));
      }
    },
  });
  return { shown: element("section", { class: "layer" }, element("label", {}, box, title), inner), box };
}

export function swatch(colour) {
  const made = element("span", { class: "swatch" });
  made.style.background = `rgb(${colour})`;
  return made;
}

// `act` is called with each number from 0 to 1 that one slides to.
export function slider(words, step, value, act) {
  const made = element("input", { type: "range", min: 0, max: 1, step, value, "aria-label": words });
  made.addEventListener("input", () => act(Number(made.value)));
  return made;
}
