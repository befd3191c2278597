// Cutting text into pre-tokens: the pieces inside which merges may happen, and not across them.
// The patterns are those of pretokenize.py, without what JavaScript lacks: possessive quantifiers (where they
// stand, plain ones match the same), `(?i:...)`, and a `\s` that is Unicode's White_Space.

const SPACE = String.raw`\p{White_Space}`;
const NOT_SPACE = String.raw`\P{White_Space}`;
const OTHER = String.raw`[^\p{White_Space}\p{L}\p{N}]`;
const TRAILING_SPACE = `${SPACE}+(?!${NOT_SPACE})`;
const BEFORE_WORD = String.raw`[^\r\n\p{L}\p{N}]?`;
// U+017F, the long s, is an s when case does not count.
const CONTRACTION = "'(?:[sS\u017fdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])";
const UPPER = String.raw`[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`;
const LOWER = String.raw`[\p{Ll}\p{Lm}\p{Lo}\p{M}]`;

/** cl100k and its relatives: `digits` in a number, and what whitespace is at the end of the text. */
function cl100kLike(digits, ending) {
  const symbols = String.raw` ?${OTHER}+[\r\n]*`;
  const lines = String.raw`${SPACE}*[\r\n]+`;
  return [CONTRACTION, String.raw`${BEFORE_WORD}\p{L}+`, digits, symbols, ...ending, lines, TRAILING_SPACE, `${SPACE}+`];
}

const GPT2 = [
  "'(?:[sdmt]|ll|ve|re)", String.raw` ?\p{L}+`, String.raw` ?\p{N}+`, ` ?${OTHER}+`, TRAILING_SPACE, SPACE,
];
const O200K = [
  `${BEFORE_WORD}${UPPER}*${LOWER}+(?:${CONTRACTION})?`, `${BEFORE_WORD}${UPPER}+${LOWER}*(?:${CONTRACTION})?`,
  String.raw`\p{N}{1,3}`, String.raw` ?${OTHER}+[\r\n/]*`, String.raw`${SPACE}*[\r\n]+`, TRAILING_SPACE, `${SPACE}+`,
];
const PATTERNS = {
  gpt2: GPT2,
  cl100k: cl100kLike(String.raw`\p{N}{1,3}`, [`${SPACE}+$`]),
  o200k: O200K,
  llama3: cl100kLike(String.raw`\p{N}{1,3}`, []),
  // Every digit is cut out first, so whitespace before one is at the end of what is left.
  smollm: [
    "'(?:[sdmt]|ll|ve|re)", String.raw` ?\p{L}+`, String.raw`\p{N}`, ` ?${OTHER}+`,
    String.raw`${SPACE}+(?![^\p{White_Space}\p{N}])`, SPACE,
  ],
  qwen2: cl100kLike(String.raw`\p{N}`, []),
};

/** A function that splits text into its pre-tokens. Throws an Error for a pattern that JavaScript cannot run. */
function splitter(name, source) {
  if (name === "none") return (text) => (text ? [text] : []);
  const pattern = new RegExp(Object.hasOwn(PATTERNS, name) ? PATTERNS[name].join("|") : translated(source), "gu");
  return (text) => [...matchesAndGaps(pattern, text)];
}

/** What `pattern` matches in `text`, and what lies between the matches, as it comes. */
function* matchesAndGaps(pattern, text) {
  let start = 0;
  for (const match of text.matchAll(pattern)) {
    if (match.index > start) yield text.slice(start, match.index);
    if (match[0]) yield match[0];
    start = match.index + match[0].length;
  }
  if (start < text.length) yield text.slice(start);
}

const MEANS = { s: SPACE, S: NOT_SPACE, d: String.raw`\p{Nd}`, D: String.raw`\P{Nd}` };

/** A custom pattern of Python's `regex` for JavaScript's engine, which refuses by itself most of what it lacks. */
function translated(source) {
  let inSet = false;
  return source.replace(/\\(.)|\[\^?\]?|[\].]/gsu, (part, escaped) => {
    if (escaped !== undefined) return translatedEscape(part, escaped);
    if (part === ".") return inSet ? part : String.raw`[^\n]`;
    if (inSet && part.startsWith("[")) return part.replace(/^\[/, String.raw`\[`);
    inSet = part !== "]";
    return part.startsWith("[") ? part.replace("]", String.raw`\]`) : part;
  });
}

function translatedEscape(part, escaped) {
  if (Object.hasOwn(MEANS, escaped)) return MEANS[escaped];
  if ("wWbB".includes(escaped)) throw new Error(`${part} knows no letters but the English ones in JavaScript`);
  return /[a-z0-9]/i.test(escaped) ? part : `\\u{${escaped.codePointAt(0).toString(16)}}`;
}

/** `text` with each half of a surrogate pair, which UTF-8 cannot express, replaced by U+FFFD. */
function wellFormed(text) {
  return text.replace(/\p{Surrogate}/gu, "\ufffd");
}

/** {part, special} in order: special tokens are found leftmost first, of those at one place the longest. */
function splitSpecials(text, specials) {
  if (!specials.length) return [{ part: text, special: false }];
  const longestFirst = [...specials].sort((a, b) => b.length - a.length);
  const pattern = new RegExp(longestFirst.map(escaped).join("|"), "gu");
  const known = new Set(specials);
  return [...matchesAndGaps(pattern, text)].map((part) => ({ part, special: known.has(part) }));
}

function escaped(text) {
  return text.replace(/[\^$\\.*+?()[\]{}|/]/g, "\\$&");
}
