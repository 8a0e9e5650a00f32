// How similar the features of the place that one clicks are to those of the whole slide, as a heat map.

import { ask, drawing, element, number, say, share } from "./page.js";
import { layerSection, slider } from "./section.js";

export function featuresLayer(zoom, base, title, details, rank) {
  let layer = null;
  let facts = null;
  let opacity = 0.8;

  const section = layerSection(title, async (on, inner) => {
    if (!on) {
      layer?.remove();
      layer = null;
      zoom.mark();
      return;
    }
    facts ??= await ask(base);
    const fader = slider("Opacity", 0.05, opacity, (share) => {
      opacity = share;
      layer?.fade(opacity);
    });
    const words = `${number(facts.count)} ${facts.of} of ${facts.backbone}: click one to see which are like it.`;
    inner.replaceChildren(element("p", { class: "soft" }, words), element("label", {}, element("span", {}, "Opacity")), fader);
  });

  async function asked(x, y, current) {
    if (!section.box.checked || !facts) return;
    const found = await ask(`${base}/at?x=${x}&y=${y}`);
    if (!current() || !section.box.checked) return;
    if (!found) return say("no features there");
    layer = zoom.add(rank, (tile) => `${base}/${found.cell}/${tile}`, opacity, layer);
    zoom.mark([ring(found.square)]);
    for (const { square } of found.best) zoom.mark([ring(square)], "near");
    const links = found.best.map(({ square, cosine }) =>
      element("button", { type: "button", title: "Go there", onclick: () => zoom.go(square, 4) }, share(cosine, 3)));
    details.append(
      element("div", { class: "layer" }, element("h3", {}, "Cosine similarity"), ramp(facts.colours),
        element("div", { class: "ends" }, element("span", {}, `${share(found.low, 2)} or less`), element("span", {}, "1")),
        element("p", { class: "soft" }, "Most similar elsewhere (dashed):"), element("div", { class: "links" }, ...links)),
    );
    say(`similarity to ${facts.of.slice(0, -1)} ${found.cell}`);
  }
  return { section: section.shown, asked };
}

const ring = ([left, top, right, bottom]) => [[left, top], [right, top], [right, bottom], [left, bottom]];

function ramp(colours) {
  const parts = colours.map((colour, place) => drawing("rect", { x: place, width: 1.02, height: 1, fill: `rgb(${colour})` }));
  return drawing("svg", { class: "ramp", viewBox: `0 0 ${colours.length} 1`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...parts);
}
