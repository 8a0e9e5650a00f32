// A run: a tile, two views of it as training drew them, and the cells that share tissue with the one that is chosen.

import { ask, element, number, percent, problem, say } from "./page.js";
import { pairPanes } from "./pair.js";

export async function showRun(id, stage, panel, current) {
  const base = `/api/runs/${id}`;
  const facts = await ask(base);
  if (!current()) return () => {};
  document.title = `${facts.name} – colocate`;
  document.getElementById("title").textContent = `${facts.recipe} · ${facts.backbone}`;
  const [rows, cols] = facts.grid;
  const state = { tile: 0, epoch: 0, view: 0, cell: Math.floor(rows / 2) * cols + Math.floor(cols / 2), by: "shares" };
  let panes = null;
  let asked = 0;

  const which = element("input", { type: "number", min: 1, max: facts.tiles, "aria-label": "Tile", onchange: () => tile(Number(which.value) - 1) });
  const shares = element("p", { class: "soft" });
  const board = element("div", { class: "panes" });
  const table = element("section", { "aria-live": "polite" });
  const button = (words, key, act) => element("button", { type: "button", title: `${words} (${key})`, onclick: act }, words);
  const radio = (value, words) =>
    element("label", {}, element("input", { type: "radio", name: "by", value, checked: value === state.by, onchange: () => by(value) }), words);
  const bar = element("div", { class: "bar" }, button("← Tile", "p", () => step(-1)), which, element("span", {}, `of ${number(facts.tiles)}`),
    button("Tile →", "n", () => step(1)), button("Another pair", "e", () => other()),
    element("fieldset", {}, radio("shares", "Shared tissue"), radio("similar", "Similarity")));
  const legend = element("p", { class: "soft legend" });
  const frame = element("div", { class: "pair" }, bar, board, legend);
  stage.append(frame);
  panel.replaceChildren(element("h2", {}, facts.name), shares, table, keys());

  async function shown(work) {
    const mine = ++asked;
    try {
      const found = await work();
      return mine === asked && current() ? found : null;
    } catch (error) {
      if (mine === asked && current()) table.replaceChildren(problem(error));
      return null;
    }
  }

  async function tile(place) {
    state.tile = Math.min(Math.max(Math.round(place) || 0, 0), facts.tiles - 1);
    which.value = state.tile + 1;
    const found = await shown(() => ask(`${base}/tiles/${state.tile}`));
    if (found) await pair(found.epoch);
  }
  const step = (by) => tile((state.tile + by + facts.tiles) % facts.tiles);
  const other = () => pair((state.epoch + 1) % facts.epochs);

  async function pair(epoch) {
    state.epoch = epoch;
    const place = `${base}/tiles/${state.tile}/${epoch}`;
    const found = await shown(() => ask(place));
    if (!found) return;
    shares.textContent = `${found.name}, views of epoch ${epoch + 1} of ${facts.epochs}, ${found.grid.join(" × ")} cells each`;
    const focused = document.activeElement?.closest?.(".pane svg") !== undefined && board.contains(document.activeElement);
    panes = pairPanes(found, place, choose);
    board.replaceChildren(...panes.figures);
    if (focused) panes.focus(state.view);
    const seen = found.seen[state.view];
    if (!(seen[state.cell] > 0)) state.cell = seen.indexOf(Math.max(...seen));
    await choose(state.view, state.cell);
  }

  async function choose(view, cell) {
    Object.assign(state, { view, cell });
    const found = await shown(() => ask(`${base}/tiles/${state.tile}/${state.epoch}/cell/${view}/${cell}`));
    if (!found) return;
    state.found = found;
    panes.show(state, found);
    legend.textContent = WORDS[state.by];
    table.replaceChildren(numbers(found));
    say(`view ${view + 1}, ${name(cell)}: ${percent(found.seen)} of it seen by the other view, in ${found.shares.length} cells`);
  }

  const WORDS = {
    shares: "Yellow frame: the tissue of the chosen cell. Numbers: what share of it each cell of the other view holds, in %. Darkened: cells that the other view did not see.",
    similar: "Cosine similarity of the chosen cell to every cell of both views, by the run's backbone on the views as drawn: dark is least similar, yellow most.",
  };
  function by(value) {
    state.by = value;
    for (const input of bar.querySelectorAll("[name=by]")) input.checked = input.value === value;
    legend.textContent = WORDS[value];
    if (state.found) panes.show(state, state.found);
  }

  const name = (cell) => `row ${Math.floor(cell / cols) + 1}, column ${(cell % cols) + 1}`;

  function numbers(found) {
    const theirs = found.similar[1 - state.view];
    const best = theirs.indexOf(Math.max(...theirs));
    const share = new Map(found.shares);
    const listed = [...found.shares].sort((one, two) => two[1] - one[1]).map(([cell]) => cell);
    if (!share.has(best)) listed.push(best);
    const lines = listed.map((cell) =>
      element("tr", { class: cell === best ? "best" : "" }, element("th", { scope: "row" }, name(cell) + (cell === best ? " ★" : "")),
        element("td", {}, percent(share.get(cell) ?? 0)), element("td", {}, number(theirs[cell], 3))));
    const head = element("tr", {}, ...["cell", "share", "cosine"].map((word) => element("th", { scope: "col" }, word)));
    return element("div", {}, element("h3", {}, `View ${state.view + 1}, ${name(state.cell)}`),
      element("p", { class: "soft" }, `View ${2 - state.view} sees ${percent(found.seen)} of its tissue:`),
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines)),
      element("p", { class: "soft" }, "★ the most similar cell by the run's backbone"));
  }

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=number]")) return;
    const act = { n: () => step(1), p: () => step(-1), e: other, s: () => by(state.by === "shares" ? "similar" : "shares") }[event.key];
    if (act) act();
  }
  addEventListener("keydown", pressed);
  await tile(0);
  return () => {
    removeEventListener("keydown", pressed);
    frame.remove();
  };
}

function keys() {
  const all = [["n", "next tile"], ["p", "previous"], ["e", "another pair"], ["s", "shares or similarity"], ["←↑→↓", "another cell"], ["Tab", "other view"]];
  return element("p", { class: "soft key" }, ...all.map(([key, words]) => element("span", {}, element("kbd", {}, key), ` ${words}`)));
}
