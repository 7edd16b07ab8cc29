// Decisions on their way. They show at once, are sent in order, and stay in the queue until the server says that they are
// on storage: what could not be saved is told, tried again, and never dropped without a word.

import { tell } from "./api.js";
import { plural } from "./dom.js";

const GATHER = 40; // milliseconds
const AGAIN = 4000;

export class Decisions {
  // onChange(picture id), onSaved(items, counts), onRefused(message), onTrouble(message or "")
  constructor(hooks) {
    Object.assign(this, hooks);
    this.queue = []; // {wish, done, fail}
    this.mine = []; // what u takes back, the last one last
    this.busy = false;
    addEventListener("beforeunload", (event) => { if (this.queue.length) event.preventDefault(); });
  }

  isUnsaved(picture) { return this.queue.some((one) => one.wish.picture_id === picture); }

  // Decide something; `before` is the item as it was, to be shown again if it is refused.
  add(wish, before) {
    const whole = { key: crypto.getRandomValues(new Uint32Array(4)).join("-"), ...wish };
    const entry = { wish: whole, before };
    entry.saved = new Promise((done) => { entry.done = done; });
    this.queue.push(entry);
    if (wish.action !== "undo") this.mine.push(entry);
    this.onChange(wish.picture_id);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.send(), GATHER);
    return entry;
  }

  async send() {
    if (this.busy || !this.queue.length) return;
    this.busy = true;
    const sent = this.queue.slice(0, 200);
    try {
      const { results, items, counts } = await tell("decisions", { decisions: sent.map((one) => one.wish) });
      const ids = new Map(results.map((one) => [one.key, one.decision_id]));
      this.queue = this.queue.filter((one) => !ids.has(one.wish.key));
      for (const one of sent) one.done(one.decision_id = ids.get(one.wish.key));
      this.onTrouble("");
      this.onSaved(items, counts);
    } catch (error) {
      if (error.lasting && sent.length > 1) { // one of them is at fault: find out which
        this.busy = false;
        const rest = this.queue.slice(sent.length);
        for (const one of sent) { this.queue = [one]; await this.send(); }
        this.queue = [...this.queue, ...rest];
      } else if (error.lasting) {
        this.queue = this.queue.filter((one) => one !== sent[0]);
        this.mine = this.mine.filter((one) => one !== sent[0]);
        sent[0].done(null);
        this.onRefused(`Not decided: ${error.message}`, sent[0]);
      } else {
        this.onTrouble(`${plural(this.queue.length, "decision is", "decisions are")} not saved: ${error.message}`);
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.send(), AGAIN);
        this.busy = false;
        return;
      }
    }
    this.busy = false;
    if (this.queue.length) this.send();
  }
}
