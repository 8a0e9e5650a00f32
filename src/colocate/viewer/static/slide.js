// A slide with zoom and pan, what lies on it, and what is known of the place where one clicks.

import { deepZoom } from "./zoom.js";
import { ask, element, number, problem } from "./page.js";
import { layerSection } from "./section.js";
import { outlinesLayer } from "./outlines.js";
import { featuresLayer } from "./features.js";

export async function showSlide(id, stage, panel, current) {
  const base = `/api/slides/${id}`;
  const facts = await ask(base);
  if (!current()) return () => {};
  document.title = `${facts.name} – colocate`;
  document.getElementById("title").textContent = facts.file;
  const zoom = deepZoom(stage, facts, (tile) => `${base}/pixels/${tile}`, `${base}/thumbnail`);
  const details = element("section", { "aria-live": "polite" });
  const made = [
    tissueLayer(zoom, base),
    ...facts.made.tiles.map((title, place) => outlinesLayer(zoom, `${base}/tiles/${place}`, `Tiles, ${title}`, details, 2, 0.5)),
    ...facts.made.features.map((title, place) => featuresLayer(zoom, `${base}/similar/${place}`, `Similarity, ${title}`, details, 3)),
    ...facts.made.predictions.map((title, place) => outlinesLayer(zoom, `${base}/predictions/${place}`, `Found, ${title}`, details, 4, 1)),
  ];
  const [wide, high] = [facts.width, facts.height].map((side) => number((side * facts.mpp) / 1000, 2));
  const size = `${number(facts.width)} × ${number(facts.height)} px, ${number(facts.mpp, 3)} µm per pixel, ${wide} × ${high} mm`;
  panel.replaceChildren(
    element("h2", {}, facts.name),
    element("p", { class: "soft" }, size),
    ...made.map((layer) => layer.section),
    details,
    element("p", { class: "soft" }, "Click, or in the picture press ", element("kbd", {}, "Enter"), ", to ask what is there. ",
      element("kbd", {}, "+"), " ", element("kbd", {}, "−"), " ", element("kbd", {}, "0"), " and arrows move."),
  );
  let asked = 0;
  zoom.asked(async (x, y) => {
    const mine = ++asked;
    zoom.mark();
    details.replaceChildren();
    try {
      for (const layer of made) await layer.asked?.(x, y, () => mine === asked && current());
    } catch (error) {
      if (mine === asked) details.append(problem(error));
    }
  });
  return () => zoom.leave();
}

// The tissue that is found where slides are cut.
function tissueLayer(zoom, base) {
  let layer = null;
  const section = layerSection("Tissue", (on) => {
    layer?.remove();
    layer = on ? zoom.add(1, (tile) => `${base}/tissue/${tile}`, 1) : null;
  });
  return { section: section.shown };
}
