
// The conversation. A model that cannot chat continues the text instead.
const conversation = [];
let running = null;
let canChat = true;

function tell(problem) {
  byId("problem").textContent = problem;
  byId("problem").hidden = !problem;
}

function addTurn(role, name) {
  byId("welcome").hidden = true;
  const turn = element("article", `turn ${role}`);
  const said = element("div", "said");
  turn.append(element("small", role === "user" ? "unseen" : "", name), said);
  byId("log").append(turn);
  return { turn, said };
}

const numberIn = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));

function request(text) {
  const shared = {
    stream: true, stream_options: { include_usage: true }, temperature: numberIn("temperature"),
    top_p: numberIn("top-p"), max_tokens: numberIn("max-tokens"), seed: numberIn("seed"),
  };
  if (!canChat) return ["/v1/completions", { ...shared, prompt: text, logprobs: SHOWN }];
  const system = byId("system").value.trim();
  const messages = system ? [{ role: "system", content: system }, ...conversation] : conversation;
  return ["/v1/chat/completions", { ...shared, messages, logprobs: true, top_logprobs: SHOWN }];
}

const nearEnd = () => innerHeight + scrollY > document.documentElement.scrollHeight - 120;

async function ask(text) {
  tell("");
  running = new AbortController();
  setBusy(true);
  if (canChat) conversation.push({ role: "user", content: text });
  addTurn("user", canChat ? "You" : "Prompt").said.textContent = text;
  const { turn, said } = addTurn("model", byId("model").textContent);
  turn.classList.add("busy");
  turn.scrollIntoView({ block: "end" });
  const answer = new Answer(said);
  const began = performance.now();
  let first = null, finish = "";
  const note = element("p", "note");
  turn.append(note);
  try {
    for await (const event of events(...request(text), running.signal)) {
      const choice = event.choices[0];
      if (!choice) continue;
      const follow = nearEnd();
      const piece = choice.delta ? choice.delta.content ?? "" : choice.text;
      if (piece || choice.logprobs) first ??= performance.now();
      answer.add(piece, tokensOf(choice));
      finish = choice.finish_reason ?? finish;
      if (follow) scrollTo(0, document.documentElement.scrollHeight);
    }
  } catch (error) {
    finish = error.name === "AbortError" ? "stopped" : "error";
    if (finish === "error") { tell(error.message); note.classList.add("bad"); }
  }
  answer.finish();
  turn.classList.remove("busy");
  note.textContent = facts(answer, began, first, finish);
  if (canChat) keep(answer.text);
  running = null;
  setBusy(false);
}

/** A question without an answer is taken back, so that roles go on alternating. */
function keep(text) {
  if (text) conversation.push({ role: "assistant", content: text });
  else conversation.pop();
}

function facts(answer, began, first, finish) {
  const ends = { stop: "", length: "cut at the most tokens", stopped: "stopped", error: "broken off" };
  const rate = (answer.count - 1) / ((performance.now() - first) / 1000);
  return [
    plural(answer.count, "token"),
    first && `first after ${seconds((first - began) / 1000)}`,
    first && answer.count > 1 && `${rate.toFixed(rate < 10 ? 1 : 0)} per second`,
    ends[finish] ?? finish,
  ].filter(Boolean).join(" · ");
}

function setBusy(busy) {
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  byId("count").textContent = busy ? "answering" : "";
}

function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function submit() {
  const text = byId("message").value;
  if (running || !text.trim()) return;
  byId("message").value = "";
  fit(byId("message"));
  ask(canChat ? text.trim() : text);
}

function forget() {
  running?.abort();
  conversation.length = 0;
  document.querySelectorAll(".turn").forEach((turn) => turn.remove());
  byId("welcome").hidden = false;
  tell("");
  byId("message").focus();
}

function startChat() {
  byId("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  byId("message").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  });
  byId("message").addEventListener("input", () => fit(byId("message")));
  byId("stop").addEventListener("click", () => running?.abort());
  byId("forget").addEventListener("click", forget);
  byId("shade").addEventListener("change", () => byId("log").classList.toggle("shaded", byId("shade").checked));
  byId("open-settings").addEventListener("click", () => {
    const hidden = byId("settings").toggleAttribute("hidden");
    byId("open-settings").setAttribute("aria-expanded", String(!hidden));
  });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  fit(byId("message"));
}
