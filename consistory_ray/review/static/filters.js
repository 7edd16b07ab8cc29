// The rail: what is shown, and in which order. The address's hash remembers it.

import { ask } from "./api.js";
import { $, h, remember } from "./dom.js";

const ONLY = [
  ["", "all"], ["undecided", "undecided"], ["takes", "takes to choose from"], ["picked", "✓ picked"], ["rejected", "✕ rejected"],
  ["reroll", "↻ take asked"], ["failed", "! failed"], ["notes", "✎ with notes"],
];
const FIELDS = ["words", "scene", "low", "high", "fault", "sort"];

export class Filters {
  constructor(onChange) {
    this.onChange = onChange;
    this.query = { ...Object.fromEntries(new URLSearchParams(location.hash.slice(1))) };
    this.counts = {};
    for (const name of FIELDS) {
      $(name).value = this.query[name] ?? (name === "sort" ? "order" : "");
      $(name).addEventListener("input", () => {
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.set({ [name]: $(name).value }), $(name).tagName === "SELECT" ? 0 : 200);
      });
    }
    $("like").addEventListener("input", () => this.load());
    this.only = new Map(ONLY.map(([name, words]) => [name, h("button", {
      type: "button", class: `choice ${name}`, role: "radio", "data-only": name, onclick: () => this.set({ only: name }),
    }, h("span", {}, words), h("small"))]));
    $("only").replaceChildren(...this.only.values());
    this.drawOnly();
  }

  get isEmpty() { return Object.entries(this.query).every(([name, value]) => !value || name === "sort"); }

  set(changes) {
    this.query = Object.fromEntries(Object.entries({ ...this.query, ...changes }).filter(([, value]) => value !== ""));
    if (this.query.sort === "order") delete this.query.sort;
    history.replaceState(null, "", `${location.pathname}#${new URLSearchParams(this.query)}`);
    for (const name of FIELDS) if (name in changes && $(name).value !== changes[name]) $(name).value = changes[name];
    this.drawOnly();
    this.drawSubjects();
    this.onChange();
  }

  clear() { this.set({ words: "", scene: "", low: "", high: "", fault: "", subject: "", only: "" }); }

  show(counts) {
    this.counts = counts;
    this.drawOnly();
  }

  // Buttons are made once and changed in place: one that is being clicked stays where it is.
  drawOnly() {
    const chosen = this.query.only ?? "";
    for (const [name, button] of this.only) {
      const count = this.counts[name || "all"] ?? 0;
      button.hidden = ["takes", "failed", "notes"].includes(name) && !count && chosen !== name;
      button.setAttribute("aria-checked", String(chosen === name));
      button.lastChild.textContent = count.toLocaleString("en");
    }
  }

  async load() {
    this.facets = await ask("facets", { like: $("like").value });
    const { faults, scores, measure, subjects, more_subjects: more } = this.facets;
    $("faults-part").hidden = !faults.length && !this.query.fault;
    $("fault").replaceChildren(h("option", { value: "" }, "any, or none"), ...faults.map((one) => h("option", { value: one.name }, `${one.name} (${one.all})`)));
    $("fault").value = this.query.fault ?? "";
    $("score-part").hidden = !scores;
    for (const option of $("sort").options) option.disabled = !scores && ["worst", "best"].includes(option.value);
    $("measure").textContent = measure;
    if (scores) { $("low").placeholder = scores[0].toFixed(2); $("high").placeholder = scores[1].toFixed(2); }
    $("like").hidden = subjects.length < 12 && !more && !$("like").value;
    this.drawSubjects();
  }

  drawSubjects() {
    if (!this.facets) return;
    const chosen = this.query.subject ?? "";
    const names = this.facets.subjects;
    const rows = [{ name: "", all: null }, ...names];
    const drawn = JSON.stringify([chosen, this.facets]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    if (chosen && !names.some((one) => one.name === chosen)) rows.splice(1, 0, { name: chosen, all: null });
    $("subjects").replaceChildren(...rows.map(({ name, all, undecided }) => h("button", {
      type: "button", class: "choice", role: "radio", "aria-checked": String(chosen === name), title: name || "all subjects",
      onclick: () => this.set({ subject: name }),
    }, h("span", {}, name || "all"), all === null ? "" : h("small", { title: "undecided of all" }, `${undecided} / ${all}`))),
    this.facets.more_subjects ? h("p", { class: "hint" }, `and ${this.facets.more_subjects.toLocaleString("en")} more: find one by its name`) : "");
  }
}

export function sizeAndAdvance(grid) {
  const size = $("size");
  if (remember.get("size")) size.value = remember.get("size");
  grid.size = Number(size.value);
  size.addEventListener("input", () => { grid.size = Number(size.value); remember.set("size", size.value); grid.layout(); });
  const advance = $("advance");
  advance.checked = remember.get("advance") !== "no";
  advance.addEventListener("change", () => remember.set("advance", advance.checked ? "yes" : "no"));
}
