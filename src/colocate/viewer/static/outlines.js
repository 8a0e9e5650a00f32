// Outlines on a slide, of predictions or of the tiles that were cut: by class and score, and one by one.

import { ask, element, later, number, say, share } from "./page.js";
import { layerSection, slider, swatch } from "./section.js";

export function outlinesLayer(zoom, base, title, details, rank, opacity) {
  let layer = null;
  let facts = null;
  const chosen = new Set();
  let least = 0;
  const query = () => `classes=${[...chosen].sort().join(",")}&score=${least}`;

  function draw() {
    const filter = query();
    layer = zoom.add(rank, (tile) => `${base}/${tile}?${filter}`, opacity, layer);
  }
  const soon = later(150, draw);

  function filters(inner) {
    const boxes = facts.classes.map(({ name, colour, count }, place) => {
      chosen.add(place);
      const box = element("input", {
        type: "checkbox",
        checked: true,
        onchange: () => {
          if (box.checked) chosen.add(place);
          else chosen.delete(place);
          soon();
        },
      });
      return element("label", {}, box, swatch(colour), element("span", {}, name), element("span", {}, number(count)));
    });
    inner.replaceChildren(...boxes);
    if (facts.least >= 1) return; // without scores
    const said = element("span", {}, number(0, 2));
    const limit = slider("Least score", 0.01, 0, (score) => {
      least = score;
      said.textContent = number(least, 2);
      soon();
    });
    inner.append(element("label", {}, element("span", {}, "Least score"), said), limit);
  }

  const section = layerSection(title, async (on, inner) => {
    if (!on) {
      layer?.remove();
      layer = null;
      return;
    }
    if (!facts) {
      inner.hidden = false;
      inner.replaceChildren("reading …");
      facts = await ask(base);
      filters(inner);
    }
    if (section.box.checked) draw();
  });

  async function asked(x, y, current) {
    if (!section.box.checked || !facts) return;
    const found = await ask(`${base}/at?x=${x}&y=${y}&scale=${zoom.scale()}&${query()}`);
    if (!found || !current() || !section.box.checked) return;
    zoom.mark(found.rings);
    const scored = facts.least < 1 ? { Score: found.score } : {};
    const rows = Object.entries({ ...scored, ...found.values }).map(([name, value]) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value == null ? "–" : share(value, 2))));
    details.append(element("div", { class: "layer" }, element("h3", {}, swatch(found.colour), ` ${found.class}`), element("table", {}, element("tbody", {}, ...rows))));
    say(`${found.class} chosen`);
  }
  return { section: section.shown, asked };
}
