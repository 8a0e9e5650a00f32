// The tile with both crops, and the two views with their cells, as three pictures.

import { drawing, element, number, percent } from "./page.js";

const box = ([top, left, bottom, right]) => ({ x: left, y: top, width: right - left, height: bottom - top });

export function pairPanes(pair, place, choose) {
  const [rows, cols] = pair.grid;
  const size = pair.view;
  const at = (cell) => {
    const [row, col] = [Math.floor(cell / cols), cell % cols];
    return { x: (col * size) / cols, y: (row * size) / rows, width: size / cols, height: size / rows };
  };
  const picture = (what, width, height) => drawing("image", { href: `${place}/picture/${what}`, width, height });

  const crops = pair.crops.map((corners, view) => {
    const points = corners.map((corner) => corner.join(",")).join(" ");
    const [x, y] = corners[0].map((from, axis) => from + (0.07 + 0.09 * view) * (corners[2][axis] - from));
    return drawing("g", {}, drawing("polygon", { points, class: "outline dark" }), drawing("polygon", { points, class: `outline ${["first", "second"][view]}` }),
      drawing("text", { x, y, "font-size": Math.max(pair.width, pair.height) / 18 }, String(view + 1)));
  });
  const tissue = drawing("g");
  const tile = drawing("svg", { viewBox: `0 0 ${pair.width} ${pair.height}`, role: "img", "aria-label": "The tile with both crops" },
    picture(2, pair.width, pair.height), ...crops, tissue);

  const views = [0, 1].map((view) => {
    const cells = pair.seen[view].map((seen, cell) =>
      drawing("rect", { ...at(cell), class: seen > 0 ? "cell" : "cell unseen", "data-cell": cell, onclick: () => chosen(view, cell) }, drawing("title")));
    const above = drawing("g");
    const shown = drawing("svg", {
      viewBox: `0 0 ${size} ${size}`, tabindex: 0, role: "application", "data-view": view,
      "aria-label": `View ${view + 1}: arrow keys choose a cell`, onkeydown: (event) => moved(event, view),
    }, picture(view, size, size), ...cells, above);
    return { shown, cells, above };
  });

  let last = { view: 0, cell: 0 };
  function chosen(view, cell) {
    last = { view, cell };
    choose(view, cell);
  }
  function moved(event, view) {
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Enter: [0, 0] }[event.key];
    if (!by) return;
    event.preventDefault();
    const from = last.view === view ? last.cell : Math.floor(rows / 2) * cols + Math.floor(cols / 2);
    const row = Math.min(Math.max(Math.floor(from / cols) + by[0], 0), rows - 1);
    const col = Math.min(Math.max((from % cols) + by[1], 0), cols - 1);
    chosen(view, row * cols + col);
  }

  // Outline a box of a view or the tile, so that it is seen on any colour.
  const outlined = (sides, kind = "light") => [drawing("rect", { ...sides, class: "outline dark" }), drawing("rect", { ...sides, class: `outline ${kind}` })];

  function show(state, found) {
    last = { view: state.view, cell: state.cell };
    tissue.replaceChildren(...outlined(box(found.tissue)));
    const most = Math.max(...found.shares.map(([, share]) => share), 1e-9);
    const shares = new Map(found.shares);
    const every = found.similar.flat();
    const [low, high] = [Math.min(...every), Math.max(...every.filter((value) => value < 0.9999), -1)];
    views.forEach(({ cells, above }, view) => {
      const other = view !== state.view;
      const words = [];
      cells.forEach((rect, cell) => {
        const cosine = found.similar[view][cell];
        const share = other ? shares.get(cell) : undefined;
        rect.style.fill = state.by === "similar" ? colourOf((cosine - low) / Math.max(high - low, 1e-6)) : share ? `rgb(255 228 92 / ${0.12 + 0.58 * (share / most)})` : "";
        rect.style.fillOpacity = state.by === "similar" ? 0.82 : "";
        rect.firstChild.textContent = `cosine ${number(cosine, 3)}${share ? `, share ${percent(share)}` : ""}`;
        const { x, y, width, height } = at(cell);
        if (state.by === "shares" && share >= 0.005) {
          words.push(drawing("text", { x: x + width / 2, y: y + height / 2, "font-size": Math.min(width, 40) / 3.4 }, String(Math.round(100 * share))));
        }
      });
      const sides = other ? box(found.truth) : at(state.cell);
      above.replaceChildren(...outlined(sides), ...words);
    });
  }

  const figure = (words, shown) => element("figure", { class: "pane" }, element("figcaption", {}, ...words), shown);
  return {
    figures: [figure(["Tile with both crops"], tile), figure(["View 1", element("i")], views[0].shown), figure(["View 2", element("i", { class: "two" })], views[1].shown)],
    show,
    focus: (view) => views[view].shown.focus(),
  };
}

// matplotlib's viridis, as the server draws it.
const STOPS = ["68 1 84", "71 44 122", "59 81 139", "44 113 142", "33 144 141", "39 173 129", "92 200 99", "170 220 50", "253 231 37"]
  .map((stop) => stop.split(" ").map(Number));

// `share` in [0, 1] from dark to light.
function colourOf(share) {
  const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const from = Math.min(Math.floor(place), STOPS.length - 2);
  const mixed = STOPS[from].map((value, channel) => Math.round(value + (place - from) * (STOPS[from + 1][channel] - value)));
  return `rgb(${mixed.join(" ")})`;
}
