
// Small helpers. Texts are only ever set as `textContent`.
const byId = (id) => document.getElementById(id);

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

const whole = (value) => Math.round(value).toLocaleString("en-US");
const plural = (count, word) => `${whole(count)} ${word}${count === 1 ? "" : "s"}`;

function share(probability) {
  if (probability >= 0.9995) return "100 %";
  if (probability >= 0.001) return `${(100 * probability).toFixed(1)} %`;
  return "< 0.1 %";
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1 ? `${(1000 * value).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(2)} s`;
}

/** A token with its white space made visible. */
const visible = (text) => text.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "→") || "∅";

/** Rows of a definition list. */
function fillFacts(list, facts) {
  list.replaceChildren(...facts.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]));
}
