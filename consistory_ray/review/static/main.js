// The page as a whole: keys, decisions as they show, and what others do meanwhile.

import { ask } from "./api.js";
import { Compare } from "./compare.js";
import { Decisions } from "./decisions.js";
import { $, h, plural, remember, toast } from "./dom.js";
import { Filters, sizeAndAdvance } from "./filters.js";
import { Grid, WORDS } from "./grid.js";
import { View } from "./view.js";

const LOOK = 2000; // milliseconds between looks at what others do
let version = 0;
let shownAll = 0;
let who = remember.get("who") ?? "";

if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", location.pathname + location.hash);

const troubles = new Map(); // source -> message
function trouble(source, message) {
  if (message) troubles.set(source, message);
  else troubles.delete(source);
  $("trouble").hidden = !troubles.size;
  $("trouble").querySelector("span").textContent = [...troubles.values()].join(" · ");
  $("trouble").querySelector("button").hidden = !troubles.has("saving");
}

const view = new View(
  (first, last) => { trouble("window", ""); grid.draw(); if (grid.selected >= first && grid.selected <= last) strip(); },
  (error) => {
    if (error.status === 410) open();
    else { trouble("window", `Pictures cannot be listed: ${error.message}`); setTimeout(() => grid.draw(), LOOK); }
  },
);
const decisions = new Decisions({
  onChange: (picture) => { grid.redraw(picture); saving(); },
  onSaved: (items, counts) => {
    put(items);
    show(counts);
    saving();
    if (compare.isOpen) compare.again();
  },
  onRefused: (message, entry) => {
    if (entry.before) view.put([entry.before]);
    grid.redraw(entry.wish.picture_id);
    strip();
    saving();
    toast(message, "bad");
  },
  onTrouble: (message) => { trouble("saving", message); saving(); },
});
const grid = new Grid(view, {
  onSelect: strip, onOpen: () => openCompare(), onMark: mark, isUnsaved: (picture) => decisions.isUnsaved(picture),
});
const compare = new Compare({ act: decide, step, onClose: () => { strip(); grid.box.focus({ preventScroll: true }); } });
const filters = new Filters(() => open());
sizeAndAdvance(grid);
$("trouble").querySelector("button").addEventListener("click", () => decisions.send());

function saving() {
  const count = decisions.queue.length;
  $("saving").dataset.state = troubles.has("saving") ? "failed" : count ? "saving" : "saved";
  $("saving").textContent = troubles.has("saving") ? `! ${count} not saved` : count ? `saving ${count}` : "✓ saved";
}

// What the server says of scenes; those with decisions on their way keep showing these.
function put(items) {
  view.put(items.filter((item) => !decisions.isUnsaved(item.id)));
  for (const item of items) grid.redraw(item.id);
  strip();
}

let loading = 0;
function show(counts) {
  if (JSON.stringify(counts) !== JSON.stringify(filters.counts)) { // subjects say how many are undecided, too
    clearTimeout(loading);
    loading = setTimeout(() => filters.load().catch(() => {}), 800);
  }
  filters.show(counts);
  const decided = counts.picked + counts.rejected + counts.reroll;
  for (const name of ["picked", "reroll", "rejected", "failed"]) $("far").querySelector(`.${name}`).style.width = `${100 * counts[name] / Math.max(1, counts.all)}%`;
  $("far-words").textContent = `${decided.toLocaleString("en")} of ${plural(counts.all, "scene")} decided`;
  const more = counts.all - shownAll;
  $("news").hidden = more <= 0;
  $("news").replaceChildren(`${plural(more, "more scene has", "more scenes have")} come. `, h("kbd", {}, "."), " shows them.");
}

async function open() {
  const id = view.id(grid.selected);
  let place = 0;
  try {
    if ((await view.open(filters.query)) === null) return;
    if (id) place = Math.max(0, (await ask("position", { view: view.name, picture: id })).position);
    trouble("view", "");
  } catch (error) {
    trouble("view", `This filter cannot be applied: ${error.message}`);
    return;
  }
  shownAll = filters.counts.all ?? 0;
  $("news").hidden = true;
  grid.marked.clear();
  $("empty").hidden = view.total > 0;
  $("empty").querySelector("p").textContent = filters.isEmpty ? "There are no pictures yet. They appear here as a render makes them." : "No scene matches this filter.";
  $("empty").querySelector("button").hidden = filters.isEmpty;
  grid.selected = place;
  grid.box.scrollTop = 0;
  grid.layout();
  grid.select(place);
}

// The line below the grid: everything about the selected scene in words.
function strip() {
  const item = view.at(grid.selected);
  if (!item || item.gone) return $("strip").replaceChildren(h("p", { class: "hint" }, view.total ? "" : "nothing selected"));
  const last = item.last && item.last.action !== "note" ? `${item.last.who}, ${item.last.at.replace("T", " ").slice(0, 16)} UTC` : "";
  const facts = [`take ${item.take}${item.takes > 1 ? ` of ${item.takes}` : ""}`, typeof item.score === "number" ? `score ${item.score.toFixed(3)}` : "", `seed ${item.seed}`, item.width ? `${item.width} × ${item.height}` : "", item.fault ? `fault: ${item.fault}` : ""];
  const state = item.state === "undecided" ? "undecided" : item.state === "reroll" ? `↻ take ${item.asked.join(", ")} asked` : WORDS[item.state];
  return $("strip").replaceChildren(
    h("p", { class: "what" }, h("b", {}, `${item.subject} · ${item.scene}`), h("span", { class: `badge ${item.state}` }, state), h("span", {}, last),
      h("span", { class: "count" }, `${(grid.selected + 1).toLocaleString("en")} of ${view.total.toLocaleString("en")}`)),
    h("p", {}, item.error ? h("span", { class: "bad" }, item.error) : item.prompt, h("span", { class: "facts" }, facts.filter(Boolean).join(" · "))),
    item.notes.length ? h("p", { class: "notes" }, ...item.notes.slice(-3).flatMap((one) => [h("b", {}, `✎ ${one.who}`), ` ${one.note}  `])) : "",
  );
}

// Decide about a take: it shows at once, and is sent.
function decide(action, item, take, more = {}) {
  if (!item || item.gone) return false;
  if (!take.content && (action === "pick" || action === "reject")) return say("There is no picture; the next render tries it again.");
  if (action === "pick" && take.picked) return say("This take is picked already.");
  if (action === "reject" && take.rejected) return say("This take is rejected already.");
  const before = view.items.get(item.id) ?? item;
  const wish = { action, picture_id: item.id, asset_id: take.asset_id, who, ...more };
  if (action === "reroll") wish.take = before.next_take;
  view.put([expected(before, take, wish)]);
  decisions.add(wish, before);
  strip();
  const words = { pick: "picked", reject: "rejected", reroll: `take ${wish.take} asked`, note: "noted" }[action];
  toast(`${item.subject} · ${item.scene}: ${words}`);
  return true;
}

function say(words) { toast(words); return false; }

// A scene as it will be when the server has taken a decision in.
function expected(item, take, wish) {
  const own = take.asset_id === item.asset_id;
  if (wish.action === "pick") return { ...item, ...shownTake(take), state: "picked", picked: true, rejected: false };
  if (wish.action === "reroll") return { ...item, state: item.state === "picked" ? "picked" : "reroll", asked: [...item.asked, wish.take], next_take: wish.take + 1 };
  if (wish.action === "note") return { ...item, notes: [...item.notes, { who, note: wish.note }] };
  const left = item.takes - item.rejected_takes - 1;
  const state = left > 0 || item.asked.length ? (item.state === "picked" && own ? "undecided" : item.state) : "rejected";
  return { ...item, state, rejected_takes: item.rejected_takes + 1, ...(own ? { rejected: true, picked: false } : {}) };
}

const shownTake = ({ asset_id, take, seed, width, height, content, score }) => ({ asset_id, take, seed, width, height, content, score });

function decideHere(action) {
  const side = compare.isOpen ? compare.current : null;
  const item = side ? view.items.get(side.item.id) ?? side.item : view.at(grid.selected);
  if (!item) return void say(view.total ? "This scene is still coming." : "There is nothing to decide about.");
  const left = item.takes - item.rejected_takes - 1;
  const done = decide(action, item, side?.take ?? item);
  const finished = action === "pick" || (action === "reject" && left <= 0) || (action === "reroll" && !compare.isOpen);
  if (!done || !$("advance").checked || !finished || (compare.isOpen && compare.scenes.length > 1)) return;
  if (compare.isOpen) step(1);
  else grid.select(grid.selected + 1);
}

let undos = 0;
async function undo() {
  const turn = ++undos;
  const entry = decisions.mine.pop();
  let target = entry?.wish;
  let id = entry && await entry.saved;
  if (entry && !id) return;
  if (!entry) {
    const item = compare.isOpen ? compare.current.item : view.at(grid.selected);
    if (!item?.last) return void toast("Nothing to undo here.");
    target = { ...item.last, picture_id: item.id };
    id = item.last.decision_id;
  }
  const item = view.items.get(target.picture_id);
  decisions.add({ action: "undo", picture_id: target.picture_id, asset_id: target.asset_id, who, undoes: id }, item);
  const words = { pick: "pick", reject: "rejection", reroll: `take ${target.take}`, note: "note" }[target.action];
  toast(`${item ? `${item.subject} · ${item.scene}: ` : ""}${words} taken back`);
  const { position } = await ask("position", { view: view.name, picture: target.picture_id });
  if (position < 0 || turn !== undos) return; // answers may pass each other: the last undo says where the page goes
  grid.select(position);
  if (compare.isOpen && compare.scenes.length === 1 && compare.scenes[0].id !== target.picture_id) openCompare();
}

function mark() {
  const id = view.id(grid.selected);
  if (!id) return;
  if (!grid.marked.delete(id)) grid.marked.add(id);
  grid.redraw(id);
}

function openCompare() {
  const marked = [...grid.marked];
  if (marked.length > 1) return compare.open(marked);
  const id = view.id(grid.selected);
  return id && compare.open([id], `${(grid.selected + 1).toLocaleString("en")} of ${view.total.toLocaleString("en")}`);
}

async function step(by) {
  const to = grid.selected + by;
  if (to < 0 || to >= view.total) return toast(by > 0 ? "That was the last scene." : "That was the first scene.");
  grid.select(to);
  await view.whole(to);
  return openCompare();
}

function askNote() {
  const side = compare.isOpen ? compare.current : null;
  const item = side?.item ?? view.at(grid.selected);
  if (!item || item.gone) return;
  const box = $("note");
  const text = box.querySelector("textarea");
  box.querySelector("h2").textContent = `${item.subject} · ${item.scene}`;
  box.querySelector("ul").replaceChildren(...item.notes.map((one) => h("li", {}, h("b", {}, one.who), ` ${one.note}`)));
  text.value = "";
  text.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    const note = text.value.trim();
    box.close();
    if (note) decide("note", item, side?.take ?? item, { note });
  };
  box.showModal();
  text.focus();
}

function askName() {
  const input = $("name").querySelector("input");
  input.value = who;
  $("name").showModal();
  input.select();
  $("name").onclose = () => {
    who = input.value.trim() || who;
    remember.set("who", who);
    $("who").textContent = who;
  };
}

const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown"];
const KEYS = {
  p: () => decideHere("pick"), r: () => decideHere("reject"), t: () => decideHere("reroll"), n: askNote, u: undo,
  c: openCompare, Enter: openCompare, " ": mark, ".": () => reload(), "?": () => $("help").showModal(),
  "/": () => { $("words").focus(); $("words").select(); },
  a: () => { $("advance").click(); toast($("advance").checked ? "Goes on after a decision." : "Stays after a decision."); },
  Escape: () => { if (grid.marked.size) { grid.marked.clear(); grid.redraw(); } else if (!filters.isEmpty) filters.clear(); },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.matches("input:not([type=range], [type=checkbox]), textarea, select");
  if (typing) {
    if (event.key === "Escape" || (event.key === "Enter" && event.target.closest("#rail"))) { event.target.blur(); grid.box.focus(); event.preventDefault(); }
    return;
  }
  if ($("note").open || $("name").open) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if ($("help").open) { if (key === "?") { $("help").close(); event.preventDefault(); } return; }
  if (event.target.matches("button, [type=checkbox], [type=range]") && ["Enter", " ", ...MOVES].includes(event.key)) return;
  if (compare.isOpen) {
    if (!compare.key(key)) { if (!["p", "r", "t", "n", "u", "?", "a"].includes(key)) return; KEYS[key](); }
  } else if (MOVES.includes(key)) grid.move(key);
  else if (KEYS[key]) KEYS[key]();
  else return;
  event.preventDefault();
});

async function reload() {
  await Promise.all([filters.load(), open()]);
  toast("The filter was applied again.");
}

async function look() {
  if (document.hidden) return;
  try {
    const told = await ask("changes", { since: version });
    version = told.version;
    const others = told.broken.length ? `A part of the decisions cannot be read and is not used: ${told.broken.join("; ")}` : "";
    trouble("storage", [told.trouble && `Storage cannot be read: ${told.trouble}`, others].filter(Boolean).join(" · "));
    trouble("server", "");
    if (told.reset) { view.refresh(grid.first, grid.last); filters.load(); } else put(told.items);
    show(told.counts);
    if (told.items.length && compare.isOpen && !decisions.queue.length && told.items.some((one) => compare.pictures.includes(one.id))) compare.again();
  } catch (error) {
    trouble("server", error.message[0].toUpperCase() + error.message.slice(1));
  }
}

async function start() {
  try {
    const session = await ask("session");
    version = session.version;
    who ||= session.who;
    $("who").textContent = who;
    $("who").addEventListener("click", askName);
    $("ask-help").addEventListener("click", () => $("help").showModal());
    for (const one of document.querySelectorAll("dialog")) one.addEventListener("click", (event) => { if (event.target === one) one.close(); });
    $("empty").querySelector("button").addEventListener("click", () => filters.clear());
    document.title = `${session.title} · review`;
    $("title").textContent = session.title;
    $("place").textContent = $("place").title = session.url;
    shownAll = session.counts.all;
    show(session.counts);
    saving();
    await Promise.all([filters.load(), open()]);
    grid.box.focus({ preventScroll: true });
  } catch (error) {
    trouble("server", error.message[0].toUpperCase() + error.message.slice(1));
  }
  setInterval(look, LOOK);
}

start();
