// What the server is asked. An answer that is no success becomes a Refusal, with what can be done about it.

export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // 0: there was no answer at all
  }
  get lasting() { return this.status >= 400 && this.status < 500; } // asking again would end the same way
}

async function answered(promise) {
  let response;
  try {
    response = await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("the server does not answer; is `consistory-ray review` still running?", 0);
  }
  if (response.ok) return response.json();
  let told = {};
  try { told = await response.json(); } catch { /* a refusal in plain text */ }
  const problems = (told.problems || []).map((one) => `${one.path} ${one.value}: ${one.fix}`).join("; ");
  const unwanted = response.status === 403 ? "this link is no longer valid: use the one that was printed last" : "";
  throw new Refusal([told.error || unwanted || response.statusText, problems].filter(Boolean).join(": "), response.status);
}

export const ask = (path, given = {}, signal = undefined) =>
  answered(fetch(`/api/${path}?${new URLSearchParams(given)}`, { signal, credentials: "same-origin" }));

export const tell = (path, body) =>
  answered(fetch(`/api/${path}`, {
    method: "POST", credentials: "same-origin", keepalive: JSON.stringify(body).length < 60000,
    headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  }));
