// A bar of a round number of micrometres with what a pixel of the screen shows, and the whole slide in small.

import { drawing, element, number } from "./page.js";

const LONGEST = 150; // pixels of the screen

// The largest of 1, 2 or 5 times a power of ten that is at most `most`.
export function round(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return power * [5, 2, 1].find((times) => times * power <= most);
}

export function scaleBar(mpp) {
  const line = element("i");
  const words = element("span");
  return {
    shown: element("div", { class: "scale", role: "img", "aria-label": "Scale bar" }, words, line),
    // `pixels`: of the screen, a level0 pixel.
    show(pixels) {
      const um = round((LONGEST * mpp) / pixels);
      line.style.width = `${(um / mpp) * pixels}px`;
      words.textContent = `${um >= 1000 ? `${um / 1000} mm` : `${Number(um.toPrecision(1))} µm`}  ·  ${number(mpp / pixels, 2)} µm per pixel`;
    },
  };
}

// `go(x, y)` is called with the place, in level0 pixels, that one clicks.
export function smallMap({ width, height }, thumbnail, go) {
  const frame = drawing("rect");
  const shown = drawing("svg", { viewBox: `0 0 ${width} ${height}`, class: "map", "aria-hidden": "true" }, drawing("image", { href: thumbnail, width, height }), frame);
  shown.style.aspectRatio = `${width} / ${height}`;
  shown.addEventListener("click", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(shown.getScreenCTM().inverse());
    go(at.x, at.y);
  });
  return {
    shown,
    show(x, y, wide, high) {
      const [left, top] = [Math.max(x, 0), Math.max(y, 0)];
      frame.setAttribute("x", left);
      frame.setAttribute("y", top);
      frame.setAttribute("width", Math.max(Math.min(x + wide, width) - left, 0));
      frame.setAttribute("height", Math.max(Math.min(y + high, height) - top, 0));
    },
  };
}
