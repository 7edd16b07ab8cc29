// Takes side by side at full size: of one scene, or of several that were marked.

import { ask } from "./api.js";
import { $, h, picture, preview, toast } from "./dom.js";

export class Compare {
  // act(action, item, take), step(by): the next scene of the grid
  constructor({ act, step, onClose }) {
    Object.assign(this, { act, step });
    this.box = $("compare");
    this.box.querySelector(".close").addEventListener("click", () => this.box.close());
    this.box.addEventListener("close", () => { this.sides = []; onClose(); });
    this.sides = []; // {item, take}
    this.chosen = 0;
    this.actual = false;
  }

  get isOpen() { return this.box.open; }

  get current() { return this.sides[this.chosen]; }

  // Show the takes of a scene, or what is shown of several scenes.
  async open(pictures, where = "") {
    const asked = (this.asked = Symbol("open"));
    this.pictures = pictures;
    this.where = where;
    let scenes;
    try {
      scenes = await Promise.all(pictures.map((id) => ask(`scene/${encodeURIComponent(id)}`)));
    } catch (error) {
      return toast(`Cannot be shown: ${error.message}`, "bad");
    }
    if (asked !== this.asked) return undefined;
    const one = scenes.length === 1;
    this.scenes = scenes;
    const before = this.current?.take.asset_id;
    this.sides = scenes.flatMap((item) => (one ? item.all_takes : item.all_takes.filter((take) => take.asset_id === item.asset_id))
      .filter((take) => !one || take.content || item.all_takes.length === 1).map((take) => ({ item, take })));
    const shown = scenes[0].asset_id;
    const wanted = this.sides.findIndex(({ take }) => take.asset_id === before);
    this.chosen = wanted >= 0 ? wanted : Math.max(0, this.sides.findIndex(({ take }) => take.asset_id === shown));
    this.draw();
    if (!this.box.open) this.box.showModal();
    return undefined;
  }

  again() { return this.open(this.pictures, this.where); }

  draw() {
    const item = this.scenes[0];
    const several = this.scenes.length > 1;
    $("compare-title").textContent = several ? `${this.scenes.length} scenes` : `${item.subject} · ${item.scene}`;
    $("compare-prompt").textContent = several ? "" : item.prompt;
    $("compare-place").textContent = this.where;
    this.box.classList.toggle("actual", this.actual);
    $("sides").replaceChildren(...this.sides.map((side, place) => this.side(side, place, several)));
    for (const pane of $("sides").querySelectorAll(".pane")) pane.addEventListener("scroll", () => this.together(pane));
    const anchors = several ? [] : item.anchors;
    const notes = several ? [] : item.notes;
    $("compare-foot").replaceChildren(
      anchors.length ? h("div", { class: "anchors" }, h("span", {}, "anchors"), ...anchors.map((one) => h("img", { src: preview(one), alt: one.name, title: one.name }))) : "",
      h("ul", { class: "notes" }, ...notes.map((one) => h("li", {}, h("b", {}, one.who), ` ${one.note}`))),
      h("p", { class: "hint" }, ...hints(this.sides.length > 1, several)),
    );
    this.choose(this.chosen);
  }

  side({ item, take }, place, several) {
    const state = take.picked ? "picked" : take.rejected ? "rejected" : "";
    const words = [take.score === null ? "" : take.score.toFixed(3), `seed ${take.seed}`, take.width ? `${take.width} × ${take.height}` : ""];
    const figure = h("figure", { class: state, tabIndex: -1 },
      h("div", { class: "pane" }, take.content
        ? h("img", { src: picture(take), alt: item.prompt, width: take.width, height: take.height, draggable: false })
        : h("p", { class: "reason" }, take.error || "no picture")),
      h("figcaption", {}, h("kbd", {}, String(place + 1)), h("b", {}, several ? `${item.subject} · ${item.scene}` : `take ${take.take}`),
        state ? h("span", { class: `badge ${state}` }, state === "picked" ? "✓ picked" : "✕ rejected") : "",
        h("span", { class: "facts" }, words.filter(Boolean).join(" · "))));
    figure.addEventListener("click", () => this.choose(place));
    return figure;
  }

  choose(place) {
    this.chosen = Math.max(0, Math.min(place, this.sides.length - 1));
    [...$("sides").children].forEach((figure, number) => {
      figure.classList.toggle("selected", number === this.chosen);
      figure.setAttribute("aria-current", number === this.chosen);
    });
    $("sides").children[this.chosen]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  together(pane) {
    for (const other of $("sides").querySelectorAll(".pane")) {
      if (other === pane) continue;
      other.scrollLeft = pane.scrollLeft;
      other.scrollTop = pane.scrollTop;
    }
  }

  key(key) {
    if (/^[1-9]$/.test(key)) { if (Number(key) <= this.sides.length) this.choose(Number(key) - 1); }
    else if (key === "ArrowLeft" || key === "ArrowRight") this.choose(this.chosen + (key === "ArrowLeft" ? -1 : 1));
    else if (key === "ArrowUp" || key === "ArrowDown") { if (this.scenes.length === 1) this.step(key === "ArrowUp" ? -1 : 1); }
    else if (key === "z") { this.actual = !this.actual; this.draw(); }
    else if (key === "c" || key === "Enter") this.box.close();
    else return false;
    return true;
  }
}

function hints(choice, several) {
  const keys = [["p", "pick"], ["r", "reject"], ["t", "another take"], ["n", "note"], ["u", "undo"], ["z", "pixel by pixel"]];
  if (choice) keys.unshift(["← →", "choose"]);
  if (!several) keys.push(["↑ ↓", "other scenes"]);
  return keys.flatMap(([key, word]) => [h("kbd", {}, key), ` ${word}  `]);
}
