// A filtered list of scenes that may be long: only windows of it are here, and windows far away are forgotten.

import { ask } from "./api.js";

const PAGE = 100;
const KEPT_PAGES = 60;

export class View {
  constructor(onChange, onTrouble) {
    this.onChange = onChange; // called with the first and last index of what came
    this.onTrouble = onTrouble;
    this.name = "";
    this.total = 0;
    this.query = {};
    this.forget();
  }

  forget() {
    for (const page of this.pages?.values() ?? []) page.abort?.abort();
    this.pages = new Map(); // number -> {ids, abort}; ids are null while the page is on its way
    this.items = new Map(); // picture id -> item
  }

  async open(query) {
    const asked = (this.asked = Symbol("open"));
    const { view, total, version } = await ask("view", query);
    if (asked !== this.asked) return null; // another filter was set meanwhile
    this.forget();
    Object.assign(this, { name: view, total, query });
    return version;
  }

  id(index) { return this.pages.get(Math.floor(index / PAGE))?.ids?.[index % PAGE]; }

  at(index) { return this.items.get(this.id(index)); }

  // See that everything between two indices is here or on its way.
  want(first, last) {
    if (!this.name || !this.total) return;
    const from = Math.floor(Math.max(0, first) / PAGE);
    const to = Math.floor(Math.max(0, Math.min(last, this.total - 1)) / PAGE);
    for (const [number, page] of this.pages) {
      if (!page.ids && (number < from - 1 || number > to + 1)) { page.abort.abort(); this.pages.delete(number); }
    }
    for (let number = from; number <= to; number++) if (!this.pages.has(number)) this.fetch(number);
    if (this.pages.size > KEPT_PAGES) this.dropFar((from + to) / 2);
  }

  async whole(index) {
    this.want(index, index);
    await this.pages.get(Math.floor(index / PAGE))?.coming;
    return this.at(index);
  }

  fetch(number) {
    const page = { ids: null, abort: new AbortController() };
    this.pages.set(number, page);
    page.coming = ask("window", { view: this.name, start: number * PAGE, count: PAGE }, page.abort.signal)
      .then(({ items }) => {
        if (this.pages.get(number) !== page) return;
        for (const item of items) this.items.set(item.id, item);
        page.ids = items.map((item) => item.id);
        this.onChange(number * PAGE, number * PAGE + items.length - 1);
      })
      .catch((error) => {
        if (this.pages.get(number) === page) this.pages.delete(number);
        if (error.name !== "AbortError") this.onTrouble(error);
      });
  }

  dropFar(middle) {
    const far = [...this.pages.keys()].sort((a, b) => Math.abs(b - middle) - Math.abs(a - middle));
    for (const number of far.slice(0, this.pages.size - KEPT_PAGES)) {
      for (const id of this.pages.get(number).ids ?? []) this.items.delete(id);
      this.pages.get(number).abort.abort();
      this.pages.delete(number);
    }
  }

  // Everything may have changed: fetch it again, and show what was there until it comes.
  refresh(first, last) {
    const [from, to] = [Math.floor(Math.max(0, first) / PAGE), Math.floor(Math.max(0, last) / PAGE)];
    for (const [number, page] of this.pages) {
      if (number >= from && number <= to) continue;
      page.abort.abort();
      this.pages.delete(number);
    }
    for (const number of [...this.pages.keys()]) {
      const ids = this.pages.get(number).ids;
      this.fetch(number);
      this.pages.get(number).ids = ids;
    }
  }

  put(items) {
    for (const item of items) if (this.items.has(item.id)) this.items.set(item.id, item);
  }
}
