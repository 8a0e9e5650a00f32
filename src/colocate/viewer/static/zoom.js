// OpenSeadragon on a slide: overlays in a fixed order, marks, a scale bar, and where one clicks in level0 pixels.

import { drawing, element, say } from "./page.js";
import { scaleBar, smallMap } from "./scale.js";

const { OpenSeadragon } = globalThis;

// OpenSeadragon adds an inline style, which the page's policy forbids, unless it finds an element of this name: one of
// another language will do.
const style = document.createElementNS("http://www.w3.org/1998/Math/MathML", "style");
style.setAttribute("data-openseadragon-mobile-css", "");
document.head.append(style);

export function deepZoom(stage, slide, url, thumbnail) {
  const place = element("div", { class: "view" });
  stage.append(place);
  const source = (address) => ({
    width: slide.width,
    height: slide.height,
    tileSize: slide.tile,
    minLevel: 0,
    maxLevel: slide.levels,
    getTileUrl: (level, x, y) => address(`${level}/${x}_${y}`),
    hasTransparency: () => address !== url,
  });
  const viewer = OpenSeadragon({
    element: place,
    tileSources: source(url),
    drawer: "canvas",
    showNavigationControl: false,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    maxZoomPixelRatio: 8,
    visibilityRatio: 0.3,
    animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.5,
    timeout: 120000,
  });
  const canvas = viewer.canvas;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "The slide. Arrows move it, plus and minus zoom, Enter asks what is in the middle.");

  const marks = drawing("g");
  const bar = scaleBar(slide.mpp);
  const image = () => viewer.world.getItemAt(0);
  const map = smallMap(slide, thumbnail, (x, y) => viewer.viewport.panTo(image().imageToViewportCoordinates(x, y)));
  const cross = element("div", { class: "cross", "aria-hidden": "true" }, "+");
  place.append(drawing("svg", { class: "marks", "aria-hidden": "true" }, marks), cross, bar.shown, zoomButtons(viewer), map.shown);

  function follow() {
    if (!image()) return;
    const from = image().imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const to = image().imageToViewerElementCoordinates(new OpenSeadragon.Point(1000, 0));
    const pixels = (to.x - from.x) / 1000;
    marks.setAttribute("transform", `matrix(${pixels} 0 0 ${pixels} ${from.x} ${from.y})`);
    bar.show(pixels);
    map.show(-from.x / pixels, -from.y / pixels, place.clientWidth / pixels, place.clientHeight / pixels);
  }
  viewer.addHandler("update-viewport", follow);
  viewer.addHandler("open-failed", () => say("the slide cannot be shown"));

  const layers = []; // those shown, lowest first: {rank, item}
  function add(rank, address, opacity, before) {
    const layer = { rank, address, opacity, item: null, gone: false };
    layers.push(layer);
    layers.sort((one, other) => one.rank - other.rank);
    viewer.addTiledImage({
      tileSource: source(address),
      opacity,
      success: ({ item }) => {
        layer.item = item;
        if (layer.gone) return viewer.world.removeItem(item);
        item.setOpacity(layer.opacity);
        const below = layers.filter((other) => other.item && layers.indexOf(other) < layers.indexOf(layer)).length;
        viewer.world.setItemIndex(item, Math.min(below + 1, viewer.world.getItemCount() - 1));
        if (before) item.addOnceHandler("fully-loaded-change", before.remove); // so that nothing flickers
      },
    });
    layer.remove = () => {
      before?.remove();
      layer.gone = true;
      if (layers.includes(layer)) layers.splice(layers.indexOf(layer), 1);
      if (layer.item && viewer.world.getIndexOfItem(layer.item) >= 0) viewer.world.removeItem(layer.item);
    };
    layer.fade = (share) => {
      layer.opacity = share;
      layer.item?.setOpacity(share);
    };
    return layer;
  }

  return {
    add,
    scale: () => 1 / (image() ? image().viewportToImageZoom(viewer.viewport.getZoom(true)) : 1),
    // Show closed rings of points x, y in level0 pixels above all.
    mark(rings = [], kind = "over") {
      if (!rings.length) return marks.replaceChildren();
      const path = rings.map((ring) => `M${ring.map(([x, y]) => `${x} ${y}`).join("L")}Z`).join("");
      if (kind === "over") marks.append(drawing("path", { d: path, class: "under" }));
      marks.append(drawing("path", { d: path, class: kind }));
    },
    go([left, top, right, bottom], margin = 0) {
      const [wide, high] = [(right - left) * (1 + 2 * margin), (bottom - top) * (1 + 2 * margin)];
      const box = new OpenSeadragon.Rect((left + right - wide) / 2, (top + bottom - high) / 2, wide, high);
      viewer.viewport.fitBounds(image().imageToViewportRectangle(box));
    },
    asked(answer) {
      const at = (point) => {
        const found = image()?.viewerElementToImageCoordinates(point);
        if (found) answer(found.x, found.y);
      };
      viewer.addHandler("canvas-click", (event) => event.quick && at(event.position));
      viewer.addHandler("canvas-key", (event) => {
        const key = event.originalEvent.key;
        if ("rRfF".includes(key)) event.preventDefaultAction = true; // slides stay as they lie
        if (key === "Enter") at(new OpenSeadragon.Point(place.clientWidth / 2, place.clientHeight / 2));
      });
    },
    leave() {
      viewer.destroy();
      place.remove();
    },
  };
}

function zoomButtons(viewer) {
  const button = (label, words, act) => element("button", { type: "button", "aria-label": words, title: words, onclick: act }, label);
  const by = (factor) => () => viewer.viewport.zoomBy(factor).applyConstraints();
  return element("div", { class: "zoom" }, button("+", "Zoom in", by(1.6)), button("−", "Zoom out", by(1 / 1.6)),
    button("⌂", "Whole slide", () => viewer.viewport.goHome()));
}
