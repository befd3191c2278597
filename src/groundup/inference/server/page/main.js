
// The three views, and the start.
const VIEWS = ["chat", "tokens", "engine"];
let explorer = null;

/** The explorer in a frame without any rights but to run its own script. */
async function openExplorer() {
  if (explorer) return;
  explorer = element("iframe");
  explorer.title = "Token explorer";
  explorer.setAttribute("sandbox", "allow-scripts");
  try {
    const response = await fetch("/explorer", { headers: headers() });
    if (!response.ok) throw await failure(response);
    explorer.srcdoc = await response.text();
    byId("explorer-state").hidden = true;
    byId("view-tokens").append(explorer);
  } catch (error) {
    explorer = null;
    byId("explorer-state").textContent = error.message;
  }
}

function show(name) {
  for (const view of VIEWS) {
    byId(`view-${view}`).hidden = view !== name;
    byId(`tab-${view}`).setAttribute("aria-selected", String(view === name));
    byId(`tab-${view}`).tabIndex = view === name ? 0 : -1;
  }
  tip.hidden = true;
  if (name === "tokens") openExplorer();
  if (name === "engine") refresh();
}

VIEWS.forEach((view, place) => {
  byId(`tab-${view}`).addEventListener("click", () => show(view));
  byId(`tab-${view}`).addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: VIEWS.length - 1 }[event.key];
    if (!step) return;
    const next = VIEWS[(place + step) % VIEWS.length];
    show(next);
    byId(`tab-${next}`).focus();
  });
});
byId("key").addEventListener("change", () => { tell(""); refresh(); });
startChat();
watch();
byId("message").focus();
