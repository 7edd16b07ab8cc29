// The grid: as many cells as fit on the screen, however many scenes there are.

import { $, h, preview } from "./dom.js";

const GAP = 14;
const CAPTION = 46;
const SETTLE = 70; // milliseconds after which pictures are asked for while somebody scrolls

export const WORDS = { picked: "✓ picked", rejected: "✕ rejected", reroll: "↻ take asked", failed: "! failed", undecided: "" };

export class Grid {
  constructor(view, { onSelect, onOpen, onMark, isUnsaved }) {
    Object.assign(this, { view, onSelect, onOpen, isUnsaved });
    this.box = $("grid");
    this.canvas = $("canvas");
    this.size = 200;
    this.selected = -1;
    this.marked = new Set(); // picture ids
    this.cells = new Map(); // index -> cell
    this.free = [];
    this.box.addEventListener("scroll", () => this.scrolled());
    new ResizeObserver(() => this.layout()).observe(this.box);
    this.canvas.addEventListener("click", (event) => {
      const cell = event.target.closest(".cell");
      if (!cell) return;
      this.select(Number(cell.dataset.index));
      this.box.focus({ preventScroll: true });
      if (event.shiftKey || event.ctrlKey || event.metaKey) onMark();
    });
    this.canvas.addEventListener("dblclick", () => onOpen());
  }

  layout() {
    const width = this.box.clientWidth - 2 * GAP;
    if (width <= 0) return;
    const top = Math.round(this.box.scrollTop / (this.height || 1)) * (this.columns || 1); // what was first stays first
    this.columns = Math.max(1, Math.floor((width + GAP) / (this.size + GAP)));
    this.side = Math.floor((width + GAP) / this.columns - GAP);
    this.height = this.side + CAPTION + GAP;
    this.rows = Math.ceil(this.view.total / this.columns);
    this.canvas.style.height = `${this.rows * this.height + GAP}px`;
    this.box.style.setProperty("--side", `${this.side}px`);
    this.box.scrollTop = Math.floor(top / this.columns) * this.height;
    for (const index of [...this.cells.keys()]) this.drop(index);
    this.draw();
  }

  get first() { return Math.max(0, Math.floor(this.box.scrollTop / this.height) - 1) * this.columns; }

  get last() {
    const end = Math.ceil((this.box.scrollTop + this.box.clientHeight) / this.height) + 1;
    return Math.min(this.view.total, end * this.columns) - 1;
  }

  scrolled() {
    this.quickly = true;
    clearTimeout(this.settling);
    this.settling = setTimeout(() => { this.quickly = false; this.view.want(this.first, this.last); this.draw(); }, SETTLE);
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    if (!this.columns) return;
    const [first, last] = [this.first, this.last];
    for (const index of [...this.cells.keys()]) if (index < first || index > last) this.drop(index);
    if (!this.quickly) this.view.want(first, last);
    for (let index = first; index <= last; index++) this.fill(index, this.cells.get(index) ?? this.take(index));
  }

  take(index) {
    const cell = this.free.pop() ?? this.make();
    const [row, column] = [Math.floor(index / this.columns), index % this.columns];
    cell.box.style.transform = `translate(${GAP + column * (this.side + GAP)}px, ${GAP + row * this.height}px)`;
    cell.box.id = `cell-${index}`;
    cell.box.dataset.index = index;
    cell.box.setAttribute("aria-posinset", index + 1);
    cell.box.setAttribute("aria-setsize", this.view.total);
    this.cells.set(index, cell);
    this.canvas.append(cell.box);
    return cell;
  }

  drop(index) {
    const cell = this.cells.get(index);
    this.cells.delete(index);
    cell.image.removeAttribute("src"); // nobody waits for it any more
    cell.shown = "";
    cell.box.remove();
    if (this.free.length < 60) this.free.push(cell);
  }

  make() {
    const cell = { shown: "" };
    cell.image = h("img", { alt: "", decoding: "async", draggable: false });
    cell.image.addEventListener("error", () => { if (cell.image.hasAttribute("src")) cell.box.classList.add("unreadable"); });
    cell.image.addEventListener("load", () => cell.box.classList.remove("unreadable"));
    cell.reason = h("div", { class: "reason" });
    cell.badges = h("div", { class: "badges" });
    cell.scene = h("b");
    cell.score = h("span", { class: "score" });
    cell.subject = h("p", { class: "subject" });
    cell.box = h("div", { class: "cell", role: "option" },
      h("div", { class: "frame" }, cell.image, cell.reason, cell.badges),
      h("p", { class: "scene" }, cell.scene, cell.score), cell.subject);
    return cell;
  }

  fill(index, cell) {
    const item = this.view.at(index);
    cell.box.classList.toggle("selected", index === this.selected);
    cell.box.setAttribute("aria-selected", index === this.selected);
    cell.box.classList.toggle("coming", !item);
    if (!item) {
      cell.box.dataset.state = "";
      cell.box.setAttribute("aria-label", "coming");
      cell.badges.replaceChildren();
      cell.scene.textContent = cell.subject.textContent = cell.score.textContent = cell.reason.textContent = "";
      return;
    }
    cell.box.dataset.state = item.gone ? "gone" : item.state;
    cell.box.classList.toggle("marked", this.marked.has(item.id));
    cell.box.classList.toggle("refused", Boolean(item.rejected));
    cell.box.classList.toggle("unsaved", this.isUnsaved(item.id));
    cell.scene.textContent = item.gone ? "no longer there" : item.scene;
    cell.subject.textContent = item.subject ?? "";
    cell.score.textContent = typeof item.score === "number" ? item.score.toFixed(2) : "";
    cell.reason.textContent = item.error ?? "";
    cell.box.setAttribute("aria-label", item.gone ? "no longer there" : `${item.subject}, ${item.scene}, ${WORDS[item.state].slice(2) || "undecided"}`);
    cell.badges.replaceChildren(...badges(item, this.marked.has(item.id)));
    const source = item.content ? preview(item) : "";
    if (source !== cell.shown && (!this.quickly || !source)) {
      cell.box.classList.remove("unreadable");
      cell.shown = source;
      if (source) cell.image.src = source;
      else cell.image.removeAttribute("src");
      cell.image.alt = item.prompt ?? "";
    }
  }

  redraw(id) {
    for (const [index, cell] of this.cells) if (id === undefined || this.view.id(index) === id) this.fill(index, cell);
  }

  select(index, scroll = true) {
    const before = this.selected;
    this.selected = this.view.total ? Math.max(0, Math.min(index, this.view.total - 1)) : -1;
    if (scroll && this.selected >= 0 && this.height) {
      const top = Math.floor(this.selected / this.columns) * this.height;
      if (top < this.box.scrollTop) this.box.scrollTop = top;
      else if (top + this.height + GAP > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + this.height + GAP - this.box.clientHeight;
    }
    for (const one of [before, this.selected]) if (this.cells.has(one)) this.fill(one, this.cells.get(one));
    this.draw();
    if (this.selected >= 0) this.box.setAttribute("aria-activedescendant", `cell-${this.selected}`);
    else this.box.removeAttribute("aria-activedescendant");
    this.onSelect();
  }

  move(key) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / this.height)) * this.columns;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -page, PageDown: page };
    if (key === "Home") return this.select(0);
    if (key === "End") return this.select(this.view.total - 1);
    const to = this.selected + steps[key];
    if (key === "ArrowDown" && to >= this.view.total && Math.floor(this.selected / this.columns) === this.rows - 1) return undefined;
    if (key === "ArrowUp" && to < 0) return undefined;
    return this.select(to);
  }
}

function badges(item, marked) {
  const found = [];
  if (item.gone) return found;
  if (item.state !== "undecided" && item.state !== "reroll") found.push(h("span", { class: `badge ${item.state}` }, WORDS[item.state]));
  if (item.asked.length) found.push(h("span", { class: "badge reroll" }, `↻ take ${item.asked.join(", ")} asked`));
  if (item.takes > 1) found.push(h("span", { class: "badge" }, item.rejected_takes ? `${Math.max(0, item.takes - item.rejected_takes)} of ${item.takes} takes left` : `${item.takes} takes`));
  if (item.notes.length) found.push(h("span", { class: "badge note", title: item.notes.at(-1).note }, "✎ note"));
  if (marked) found.push(h("span", { class: "badge marked" }, "◆ marked"));
  return found;
}
