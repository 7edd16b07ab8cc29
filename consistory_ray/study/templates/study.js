"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const { study, questions } = JSON.parse($("data").textContent);
  const ASKED = {
    consistency: "Which set shows the same individual in all of its pictures?",
    prompt: "Which picture fits the text better?",
  };
  const place = "consistory-study-" + study;
  const random = () => [...crypto.getRandomValues(new Uint8Array(8))].map((b) => b.toString(16).padStart(2, "0")).join("");
  const fresh = () => ({ person: random(), answers: {} });
  const recall = () => {
    try {
      const kept = JSON.parse(localStorage.getItem(place));
      return kept && kept.person && kept.answers ? kept : fresh();
    } catch { return fresh(); }  // private windows have no storage
  };
  const keep = () => { try { localStorage.setItem(place, JSON.stringify(state)); } catch { /* see above */ } };
  let state = recall();
  let number = 0;
  let shownAt = 0;

  const next = () => {
    const open = questions.findIndex((question) => !(question.id in state.answers));
    return open < 0 ? questions.length : open;
  };
  const fill = (side, files) => {
    side.classList.toggle("one", files.length === 1);
    side.replaceChildren(...files.map((file) => {
      const image = new Image();
      image.src = file;
      image.alt = "";
      return image;
    }));
  };
  const show = () => {
    const answered = questions.filter((question) => question.id in state.answers).length;
    $("how-far").textContent = answered + " of " + questions.length;
    $("bar").max = questions.length;
    $("bar").value = answered;
    $("asking").hidden = number >= questions.length;
    $("done").hidden = number < questions.length;
    $("back").disabled = number === 0;
    if (number >= questions.length) return;
    const question = questions[number];
    $("question").textContent = ASKED[question.asks];
    $("prompt").textContent = question.asks === "prompt" ? "“" + question.prompts[0] + "”" : "";
    fill($("left"), question.left);
    fill($("right"), question.right);
    shownAt = performance.now();
    for (const file of questions[number + 1] ? [...questions[number + 1].left, ...questions[number + 1].right] : []) {
      new Image().src = file;  // so that the next question is there at once
    }
  };
  const answer = (choice) => {
    if (number >= questions.length) return;
    const seconds = Math.round((performance.now() - shownAt) / 100) / 10;
    state.answers[questions[number].id] = { choice, seconds };
    keep();
    number = next();
    show();
  };
  const back = () => {
    if (number === 0) return;
    number -= 1;
    delete state.answers[questions[number].id];
    keep();
    show();
  };
  const download = () => {
    const answers = questions.filter((question) => question.id in state.answers)
      .map((question) => ({ question: question.id, ...state.answers[question.id] }));
    const told = { study, person: state.person, answers };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(told, null, 1) + "\n"], { type: "application/json" }));
    link.download = "answers-" + state.person + ".json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  for (const choice of ["left", "tie", "right"]) $("choose-" + choice).addEventListener("click", () => answer(choice));
  for (const side of ["left", "right"]) $(side).addEventListener("click", () => answer(side));
  $("back").addEventListener("click", back);
  $("download").addEventListener("click", download);
  $("again").addEventListener("click", () => {
    if (!confirm("Forget the answers given here and start over?")) return;
    state = fresh();
    keep();
    number = 0;
    show();
  });
  const KEYS = { ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right", 1: "left", 2: "tie", 3: "right" };
  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Backspace") back();
    else if (event.key in KEYS) answer(KEYS[event.key]);
    else return;
    event.preventDefault();
  });
  keep();
  number = next();
  show();
})();
