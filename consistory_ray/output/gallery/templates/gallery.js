"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const remember = {
    get(key) { try { return localStorage.getItem(key); } catch { return null; } },
    set(key, value) { try { localStorage.setItem(key, value); } catch { /* private windows have no storage */ } },
  };

  // filter
  const cards = [...document.querySelectorAll(".card")];
  const lists = [...document.querySelectorAll(".more")];
  const sections = [...document.querySelectorAll(".subject")];
  const others = [...document.querySelectorAll("#all-subjects a")];
  const here = location.pathname.split("/").pop() || "index.html";
  const find = $("find");
  const onlyFailed = $("only-failed");
  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const failed = Boolean(onlyFailed && onlyFailed.checked);
    let shown = 0;
    for (const card of cards) {
      const match = words.every((word) => card.dataset.words.includes(word)) && (!failed || card.classList.contains("failed"));
      card.hidden = !match;
      shown += match;
    }
    for (const more of lists) {  // of these only the names are known
      const subject = more.closest(".subject").querySelector("h2").firstChild.textContent.toLowerCase();
      let matches = 0;
      for (const item of more.querySelectorAll("li")) {
        const name = subject + " " + item.textContent.toLowerCase();
        item.hidden = failed || !words.every((word) => name.includes(word));
        matches += !item.hidden;
      }
      more.hidden = matches === 0;
      more.open = matches > 0 && words.length > 0;
      shown += matches;
    }
    for (const section of sections) section.hidden = !section.querySelector(".card:not([hidden]), .more li:not([hidden])");
    $("nothing").hidden = shown > 0 || cards.length === 0;
    const matches = words.length === 0 ? [] : others.filter(
      (link) => link.getAttribute("href") !== here && words.every((word) => link.textContent.toLowerCase().includes(word)));
    const elsewhere = $("elsewhere");
    elsewhere.hidden = matches.length === 0;
    elsewhere.replaceChildren("On other pages: ", ...matches.slice(0, 40).map((link) => {
      const copy = link.cloneNode(true);
      copy.href += "#find=" + encodeURIComponent(link.textContent);
      return copy;
    }));
  };
  find.addEventListener("input", filter);
  if (onlyFailed) onlyFailed.addEventListener("change", filter);
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  $("clear").addEventListener("click", () => {
    find.value = "";
    if (onlyFailed) onlyFailed.checked = false;
    filter();
    find.focus();
  });
  if (location.hash.startsWith("#find=")) find.value = decodeURIComponent(location.hash.slice(6));
  filter();

  // worst first, within each subject and subject by subject
  const byScore = $("by-score");
  if (byScore) {
    const score = (card) => (card.dataset.score === undefined ? 2 : Number(card.dataset.score));
    const worst = (section) => Math.min(2, ...[...section.querySelectorAll(".card:not(.anchor)")].map(score));
    const main = $("pictures");
    const order = new Map([...cards, ...sections].map((element, place) => [element, place]));
    byScore.addEventListener("change", () => {
      const by = (value) => (a, b) => (byScore.checked ? value(a) - value(b) : 0) || order.get(a) - order.get(b);
      for (const section of sections) {
        const list = section.querySelector(".cards");
        const anchors = [...list.querySelectorAll(".card.anchor")];
        list.append(...anchors, ...[...list.querySelectorAll(".card:not(.anchor)")].sort(by(score)));
      }
      $("nothing").before(...[...main.querySelectorAll(".subject")].sort(by(worst)));
    });
  }

  // picture size, light and dark
  const root = document.documentElement;
  const size = $("size");
  const resize = () => root.style.setProperty("--card", size.value + "px");
  if (remember.get("consistory-size")) size.value = remember.get("consistory-size");
  size.addEventListener("input", () => { resize(); remember.set("consistory-size", size.value); });
  resize();
  if (remember.get("consistory-theme")) root.dataset.theme = remember.get("consistory-theme");
  $("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    remember.set("consistory-theme", root.dataset.theme);
  });

  // viewer
  const viewer = $("viewer");
  let current = null;
  const links = () => [...document.querySelectorAll(".card:not([hidden]) a")];
  const show = (link) => {
    current = link;
    const large = $("large");
    const small = link.querySelector("img");
    large.src = link.href;
    large.style.maxWidth = small.getAttribute("width") * 4 + "px";  // small pictures are not blown up beyond recognition
    large.style.maxHeight = small.getAttribute("height") * 4 + "px";
    large.alt = link.dataset.prompt;
    $("large-title").textContent = link.dataset.title;
    $("large-prompt").textContent = link.dataset.prompt;
    $("large-facts").textContent = link.dataset.facts;
    $("large-link").href = link.href;
    if (!viewer.open) viewer.showModal();
  };
  const step = (by) => {
    const all = links();
    if (all.length) show(all[(all.indexOf(current) + by + all.length) % all.length]);
  };
  $("pictures").addEventListener("click", (event) => {
    const link = event.target.closest(".card a");
    if (!link || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    show(link);
  });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer || event.target.tagName === "FIGURE") viewer.close(); });
  viewer.addEventListener("close", () => { if (current) current.focus(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== find && !viewer.open) { event.preventDefault(); find.focus(); }
  });
})();
