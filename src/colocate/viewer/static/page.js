// Elements, questions to the server, and words for screen readers.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  return filled(made, attributes, children);
}

export function drawing(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// What the server says; an Error with its sentence where it refuses.
export async function ask(url) {
  let answer;
  try {
    answer = await fetch(url);
  } catch {
    throw new Error("colocate view does not answer: it may have ended");
  }
  if (answer.status === 403) throw new Error(await answer.text());
  if (answer.status === 500) throw new Error("colocate view failed here: its terminal says how");
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

export function say(words) {
  document.getElementById("said").textContent = words;
}

export function problem(error) {
  say(error.message);
  return element("p", { class: "problem", role: "alert" }, error.message);
}

export const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

// A share or a similarity with digits enough that what is below 1 is not rounded to 1.
export const share = (value, digits) =>
  number(value, value < 1 ? Math.min(Math.max(digits, Math.ceil(-Math.log10(1 - value))), 6) : digits);

export const percent = (part) => `${number(100 * part, 1)} %`;

export function later(wait, act) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...given), wait);
  };
}
