
// The server: JSON, and server-sent events read as they come.
function headers() {
  const key = byId("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function failure(response) {
  const told = await response.json().catch(() => null);
  const retry = response.headers.get("Retry-After");
  const message = told?.error?.message ?? `the server answered ${response.status}`;
  return new Error(response.status === 401 ? "This server asks for an API key: enter it in the settings."
    : retry ? `${message} (${retry} s)` : message);
}

async function fetchJSON(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** The events of a streamed answer, until [DONE]. Throws what an error event says. */
async function* events(path, body, signal) {
  const response = await fetch(path, {
    method: "POST", signal, body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers() },
  });
  if (!response.ok) throw await failure(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    const lines = (held + value).split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}
