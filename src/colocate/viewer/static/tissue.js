// The tissue that is found where slides are cut.

import { layerSection } from "./section.js";

export function tissueLayer(zoom, base) {
  let layer = null;
  const section = layerSection("Tissue", (on) => {
    layer?.remove();
    layer = on ? zoom.add(1, (tile) => `${base}/tissue/${tile}`, 1) : null;
  });
  return { section: section.shown };
}
