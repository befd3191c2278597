// The page: one text, under one tokenizer or two side by side.

const EXAMPLES = {
  Greeting: "It's 1999, and hello is not the same token as Hello or hello after a space.\n你好，世界! 🌍",
  Digits: "7 42 365 2026 31415926 1,000,000 3.14159",
  Code: "def area(r):\n    return 3.14159 * r**2\n\n\tif x != None:  # tabs and   spaces\n",
  Languages: "A small house. Ein kleines Haus. Маленький дом. 小さな家。 छोटा घर। بيت صغير. 작은 집.",
  Specials: "<|endoftext|><|user|>Are these words, or control tokens?<|end|>",
};

/** Make a header's tokenizer, or say in `problem` why this browser cannot, or not rightly. */
async function revive(header) {
  try {
    header.tokenizer = await Tokenizer.read(header);
    const { text, ids } = header.check;
    if (header.tokenizer.encode(text).join() !== ids.join()) {
      header.problem = "A check failed: this browser cuts text into words otherwise than groundup does " +
        "(its Unicode tables or regular expressions differ). What is shown below may be wrong.";
    }
  } catch (error) {
    header.problem = `This browser cannot run the tokenizer: ${error.message}`;
  }
  delete header.packed;
}

const utf8Length = (text) => new TextEncoder().encode(text).length;

/** Encode and draw again, and select the token that ends at or after `offset(side)`, in bytes. */
function refresh(sides, offset) {
  const text = wellFormed(byId("text").value);
  const bytes = utf8Length(text);
  byId("characters").textContent = number(Array.from(text).length);
  byId("bytes").textContent = number(bytes);
  for (const side of sides) side.encode(text, byId("specials").checked);
  const selected = offset(sides[0]);
  for (const side of sides) {
    side.selected = side.placeAt(selected);
    side.show(sides.find((other) => other !== side), bytes);
  }
}

/** How many bytes of the text are before the caret. */
function caret() {
  const { value, selectionStart } = byId("text");
  return utf8Length(value.slice(0, selectionStart));
}

const longestWord = (side) => side.longestWord();
const sameAsBefore = (side) => side.tokens[side.selected]?.end ?? 0;

function addExamples(changed) {
  byId("examples").append(...Object.entries(EXAMPLES).map(([name, text]) => {
    const button = element("button", "", name, { type: "button" });
    button.addEventListener("click", () => {
      byId("text").value = text;
      changed();
    });
    return button;
  }));
}

async function start() {
  const headers = JSON.parse(byId("data").textContent);
  for (const header of headers) await revive(header);
  const redraw = () => refresh(sides, sameAsBefore);
  const sides = headers.slice(0, 2).map((_, place) => new Side(headers, place, redraw, (end) => {
    for (const other of sides) if (other !== sides[place]) other.select(other.placeAt(end));
  }));
  byId("sides").append(...sides.map((side) => side.root));
  let waiting = 0;
  byId("text").addEventListener("input", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => refresh(sides, caret));
  });
  byId("specials").addEventListener("change", redraw);
  addExamples(() => refresh(sides, longestWord));
  if (!byId("text").value) byId("text").value = EXAMPLES.Greeting;
  refresh(sides, longestWord);
  byId("loading").hidden = true;
  return headers;
}

const started = start();
