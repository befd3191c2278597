
// The engine's statistics, asked for every second while they are looked at, and every third otherwise.
const SPAN = 120;
const history = [];

function drawChart() {
  const most = Math.max(1, ...history.map(([, rate]) => rate));
  const now = history.at(-1)[0];
  const points = history.map(([time, rate]) => [600 - ((now - time) / SPAN) * 600, 146 - (rate / most) * 140]);
  const path = points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join(" L ");
  byId("line").setAttribute("d", `M ${path}`);
  byId("area").setAttribute("d", `M ${points[0][0].toFixed(1)} 146 L ${path} L 600 146 Z`);
  byId("peak").textContent = `at most ${whole(most)}`;
}

function drawPages({ pages_total: total, pages_used: used, pages_cached: cached }) {
  const parts = { used, cached, free: total - used - cached };
  byId("p-used").style.width = `${(100 * used) / total}%`;
  byId("p-cached").style.width = `${(100 * cached) / total}%`;
  for (const [name, count] of Object.entries(parts)) byId(`n-${name}`).textContent = whole(count);
}

function draw(stats) {
  history.push([Date.now() / 1000, stats.tokens_per_second]);
  while (history[0][0] < history.at(-1)[0] - SPAN) history.shift();
  const rate = stats.tokens_per_second;
  const shown = rate < 10 ? rate.toFixed(1) : whole(rate);
  byId("s-rate").textContent = shown;
  byId("s-first").textContent = seconds(stats.time_to_first_token);
  byId("s-each").textContent = seconds(stats.time_per_output_token);
  byId("s-running").textContent = whole(stats.running);
  byId("s-queue").textContent = whole(stats.queue);
  byId("s-limit").textContent = `of at most ${whole(stats.queue_limit)}`;
  byId("s-hits").textContent = stats.prompt_tokens
    ? `${Math.round((100 * stats.cached_prompt_tokens) / stats.prompt_tokens)} %` : "–";
  drawChart();
  drawPages(stats);
  fillFacts(byId("requests"), Object.entries(stats.requests).map(([name, count]) => [name, whole(count)]));
  fillFacts(byId("totals"), [
    ["prompt tokens", whole(stats.prompt_tokens)], ["generated tokens", whole(stats.generated_tokens)],
    ["forward passes", whole(stats.steps)], ["preemptions", whole(stats.preemptions)],
    ["context length", plural(stats.context_length, "token")],
  ]);
  const busy = stats.running || stats.queue;
  byId("pulse-text").textContent = busy
    ? `${shown} tokens/s · ${stats.running} running · ${stats.queue} queued` : "ready";
  byId("dot").className = "dot up";
}

/** The first statistics say what the model is and whether it can chat. */
function introduce(stats) {
  byId("model").textContent = stats.model;
  document.title = `${stats.model} · groundup`;
  canChat = stats.can_chat;
  const most = byId("max-tokens");
  most.max = stats.context_length;
  most.value = Math.min(Number(most.value), Math.max(1, Math.floor(stats.context_length / 2)));
  byId("system-field").hidden = !canChat;
  if (canChat) return;
  byId("invitation").textContent = "Begin a text; the model goes on.";
  byId("message").placeholder = byId("message-label").textContent = "The beginning of a text";
  byId("forget").textContent = "Clear";
}

let introduced = false;

async function refresh() {
  try {
    const stats = await fetchJSON("/stats");
    if (!introduced) { introduce(stats); introduced = true; }
    draw(stats);
  } catch (error) {
    byId("dot").className = "dot down";
    byId("pulse-text").textContent = error.message.startsWith("This server") ? "needs a key" : "not reachable";
    if (error.message.startsWith("This server")) tell(error.message);
  }
}

async function watch() {
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((done) => setTimeout(done, byId("view-engine").hidden && !running ? 3000 : 1000));
  }
}
