// Answers on their way to the server. Each is kept in the browser under a name of its own, which two windows
// can do at the same time, until the server has said that it is saved.

const AT_ONCE = 50;
const AGAIN_MS = 2000;

export class Outbox {
  constructor(prefix, changed) {
    this.prefix = prefix;
    this.changed = changed; // called with the answer of the server, or null
    this.waiting = new Map();
    this.problem = "";
    this.sending = false;
    for (const decision of stored(prefix)) this.waiting.set(decision.key, decision);
  }

  add(decisions) {
    for (const decision of decisions) {
      this.waiting.set(decision.key, decision);
      keep(this.prefix + decision.key, JSON.stringify(decision));
    }
    this.changed(null);
    this.send();
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    while (this.waiting.size > 0) {
      const decisions = [...this.waiting.values()].slice(0, AT_ONCE);
      const answer = await post(decisions);
      this.problem = answer.problem ?? "";
      for (const key of [...(answer.saved ?? []), ...Object.keys(answer.refused ?? {})]) {
        this.waiting.delete(key);
        keep(this.prefix + key, null);
      }
      this.changed(answer);
      if (this.problem) await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
    this.sending = false;
  }
}

export function keep(name, text) {
  try {
    if (text === null) localStorage.removeItem(name);
    else localStorage.setItem(name, text);
  } catch {
    // Full or forbidden: it is kept in this window only.
  }
}

export function kept(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

async function post(decisions) {
  try {
    const response = await fetch("decisions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ decisions }),
    });
    if (response.ok) return await response.json();
    if (response.status === 403) return { problem: "The server was started anew: open the address that it shows now." };
    const told = await response.json().catch(() => ({ error: `The server failed (${response.status}).` }));
    return { problem: told.error };
  } catch {
    return { problem: "No connection to the server." };
  }
}

function stored(prefix) {
  const decisions = [];
  try {
    for (const name of Object.keys(localStorage)) {
      if (name.startsWith(prefix)) decisions.push(JSON.parse(localStorage.getItem(name)));
    }
  } catch {
    // What is not ours, or cannot be read, is nothing that was decided here.
  }
  return decisions.sort((one, other) => one.order - other.order);
}
