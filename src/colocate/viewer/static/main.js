// The list of what can be shown, and which of it is: the address says it, as #/slides/0 or #/runs/0.

import { ask, element, problem } from "./page.js";
import { showRun } from "./run.js";
import { showSlide } from "./slide.js";

const list = document.getElementById("list");
const stage = document.getElementById("stage");
const panel = document.getElementById("panel");
let leave = () => {};
let turn = 0;

history.replaceState(null, "", location.pathname + location.hash); // the token stays in no history
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = getComputedStyle(root).colorScheme === "dark" || (!root.style.colorScheme && matchMedia("(prefers-color-scheme: dark)").matches);
  root.style.colorScheme = dark ? "light" : "dark";
});

function entry(kind, { id, name, made }) {
  const counts = Object.entries(made ?? {}).filter(([, count]) => count);
  const image = kind === "slides" &&
    element("img", { src: `/api/slides/${id}/thumbnail`, alt: "", loading: "lazy", onerror: (event) => event.target.classList.add("broken") });
  const about = counts.length ? [element("small", {}, counts.map(([what]) => what).join(", "))] : [];
  const link = element("a", { href: `#/${kind}/${id}` }, ...(image ? [image] : []), name, ...about);
  return element("li", {}, link);
}

async function start() {
  const { slides, runs, notes } = await ask("/api/collection");
  for (const [kind, title, found] of [["slides", "Slides", slides], ["runs", "Runs", runs]]) {
    if (found.length) list.append(element("h2", {}, title), element("ul", {}, ...found.map((one) => entry(kind, one))));
  }
  for (const note of notes) list.append(element("p", { class: "problem" }, note));
  document.body.classList.toggle("single", slides.length + runs.length === 1 && !notes.length);
  addEventListener("hashchange", show);
  if (/^#\/(slides|runs)\/\d+/.test(location.hash)) show();
  else location.replace(slides.length ? "#/slides/0" : "#/runs/0");
}

async function show() {
  const [, kind, id] = location.hash.match(/^#\/(slides|runs)\/(\d+)/) ?? [];
  if (!kind) return; // the link to the picture
  const mine = ++turn;
  leave();
  leave = () => {};
  stage.replaceChildren();
  panel.replaceChildren();
  for (const link of list.querySelectorAll("a")) {
    if (link.hash === `#/${kind}/${id}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    const left = await (kind === "slides" ? showSlide : showRun)(id, stage, panel, () => mine === turn);
    if (mine === turn) leave = left;
    else left();
  } catch (error) {
    if (mine === turn) panel.replaceChildren(problem(error));
  }
}

start().catch((error) => panel.replaceChildren(problem(error)));
