// Making the nodes of the page. Text of a tokenizer or of the user only ever becomes text nodes and attributes.

const byId = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en-US").replaceAll(",", "\u202f");
const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

/** An element with a class, attributes, and children that are nodes or text, never markup. */
function element(tag, className = "", children = [], attributes = {}) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...[children].flat());
  return made;
}

/** Bytes in hexadecimal. */
function hex(byteString) {
  return Array.from(byteString, (byte) => byte.charCodeAt(0).toString(16).padStart(2, "0")).join(" ");
}

/** The text that the bytes are, or null where they are no whole characters. */
function textOf(byteString) {
  const bytes = Uint8Array.from(byteString, (byte) => byte.charCodeAt(0));
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

const MARKS = { " ": "·", "\t": "→", "\n": "↵\n", "\r": "␍" };
const UNSEEN = /([\p{Control}\p{Format}\p{Separator}\p{Unassigned}\p{Private_Use}])/u;

/** Nodes that show bytes: whitespace as marks, other unseen characters and parts of characters as codes. */
function visible(byteString) {
  const text = textOf(byteString);
  if (text === null) return [element("i", "code", hex(byteString).toUpperCase())];
  const carried = /^\p{Mark}/u.test(text) ? "\u25cc" : ""; // what combines needs something to stand on
  return (carried + text).split(UNSEEN).filter(Boolean).map((part) => {
    if (Object.hasOwn(MARKS, part)) return element("i", "mark", MARKS[part]);
    if (!UNSEEN.test(part)) return part;
    return element("i", "code", "U+" + part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0"));
  });
}

/** Show `text` in a paragraph, or hide it when there is none. */
function tell(paragraph, text) {
  paragraph.hidden = !text;
  if (text) paragraph.textContent = text;
}

/** A row of [class, content] cells. */
function tableRow(cells) {
  return element("tr", "", cells.map(([className, content]) => element("td", className, content)));
}

/** The first `limit` ids in one line. */
function listed(ids, limit) {
  return ids.slice(0, limit).join(", ") + (ids.length > limit ? ", …" : "");
}
