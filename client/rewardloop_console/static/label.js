// The page Label: keys, sending, and the parts that the server sends back.
"use strict";

(() => {
  const page = document.getElementById("labelling");
  const dialog = document.getElementById("keys");
  const { address, person, formToken } = page.dataset;
  // A key that was meant for the task before must not answer the one that has just come.
  const SETTLE_MS = 250;
  const RETRY_MS = 3000;
  let isSending = false;
  let isAsItIs = false;
  let marked = 0;
  let shownAt = 0;
  let hiddenMs = 0;
  let hiddenSince = null;

  const task = () => document.getElementById("task");
  const form = () => document.getElementById("answer");
  const mode = () => task().dataset.mode;
  const panel = () => form().querySelector(`[data-panel="${mode()}"]`);
  const draftKey = () => `rewardloop-draft:${person}:${task().dataset.lease}`;

  function say(text, isRefused = true) {
    const line = document.createElement("p");
    line.className = isRefused ? "refused" : "panel";
    line.textContent = text;
    document.getElementById("notice").replaceChildren(...(text ? [line] : []));
  }

  // Takes the parts that the server has sent: each replaces the element with its id.
  function put(html) {
    const parts = new DOMParser().parseFromString(html, "text/html").body.children;
    for (const part of [...parts]) document.getElementById(part.id)?.replaceWith(part);
    setUp();
    task().focus({ preventScroll: true });
    task().scrollIntoView({ block: "start" });
  }

  function setUp() {
    shownAt = performance.now();
    hiddenMs = 0;
    hiddenSince = document.hidden ? shownAt : null;
    marked = 0;
    if (isAsItIs) showAsItIs(true);
    if (!form()) return;
    form().addEventListener("submit", onSubmit);
    const list = form().querySelector(".ranking");
    if (list) setUpRanking(list, ranked);
    mark(0);
    form().elements.edited?.addEventListener("change", fillEdit);
    readDraft();
    form().elements.edited_text?.addEventListener("input", keepDraft);
    form().elements.comment.addEventListener("input", keepDraft);
  }

  // What is being written is kept until it is sent, because a lease gives the same task again.
  function keepDraft() {
    const { edited, edited_text: text, comment } = form().elements;
    const draft = { edited: edited?.value, text: text?.value, comment: comment.value };
    try {
      localStorage.setItem(draftKey(), JSON.stringify(draft));
    } catch (error) {
      say("This browser keeps no drafts. What you write is lost if you close the page before you send it.", false);
    }
  }

  function readDraft() {
    const kept = localStorage.getItem(draftKey());
    if (!kept) return;
    const draft = JSON.parse(kept);
    if (form().elements.edited_text) {
      form().elements.edited.value = draft.edited;
      form().elements.edited_text.value = draft.text;
    }
    form().elements.comment.value = draft.comment;
  }

  // The order that is shown first is random. It is the labeller's once something was moved.
  function ranked(order) {
    form().elements.order.value = order;
    form().querySelector("[data-as-shown]")?.remove();
  }

  function fillEdit() {
    const index = form().elements.edited.value;
    const source = task().querySelector(`.candidate[data-index="${index}"] .source`);
    form().elements.edited_text.value = source.textContent;
    keepDraft();
  }

  function seconds() {
    const hidden = hiddenMs + (hiddenSince === null ? 0 : performance.now() - hiddenSince);
    return ((performance.now() - shownAt - hidden) / 1000).toFixed(2);
  }

  function fieldsOf(verdict) {
    const { elements } = form();
    const fields = {
      verdict,
      lease: elements.lease.value,
      guideline_version: document.getElementById("guidelines").dataset.version,
      seconds: seconds(),
      comment: elements.comment.value,
    };
    if (verdict === "ranking") fields.order = elements.order.value;
    if (verdict === "edit") {
      fields.edited = elements.edited.value;
      fields.edited_text = elements.edited_text.value;
    }
    if (verdict === "skip") fields.reason = elements.reason.value;
    if (verdict === "rating") {
      for (const [name, value] of new FormData(form())) if (name.startsWith("grade-") && value) fields[name] = value;
    }
    return fields;
  }

  function onSubmit(event) {
    event.preventDefault();
    const verdict = event.submitter?.value;
    if (verdict) answer(verdict);
  }

  function answer(verdict) {
    if (isSending || !form()) return;
    const fields = fieldsOf(verdict);
    if (verdict === "skip" && !fields.reason.trim()) return say("Say why you skip the task.");
    if (verdict === "rating" && !Object.keys(fields).some((name) => name.startsWith("grade-"))) {
      return say("Give at least one grade.");
    }
    if (verdict === "ranking" && !fields.order) {
      return say("You have moved nothing. Move the responses, or press A if the order shown is yours.");
    }
    keepPending(address, person, fields);
    deliver(fields);
  }

  // Sends an answer until the service has taken it or refused it for good.
  async function deliver(fields) {
    isSending = true;
    task().setAttribute("aria-busy", "true");
    const response = await sendForm(`${address}/answer`, fields, formToken);
    isSending = false;
    task().removeAttribute("aria-busy");
    if (response && response.status === 401) return location.assign(response.headers.get("hx-redirect"));
    if (response && response.status === 403 && mayReload()) return location.reload(); // the answer is sent after it
    if (!response || response.status === 429 || response.status >= 500 || response.type === "opaqueredirect") {
      say("The answer is not recorded yet. It is kept in this browser and sent again until it is.");
      const after = Number(response?.headers.get("retry-after") ?? 0) * 1000 || RETRY_MS;
      isSending = true;
      setTimeout(() => deliver(fields), after);
      return;
    }
    forgetPending(fields.lease);
    localStorage.removeItem(`rewardloop-draft:${person}:${fields.lease}`);
    const text = await response.text();
    if (response.ok) {
      say("");
      put(text);
    } else {
      say(new DOMParser().parseFromString(text, "text/html").body.textContent.trim());
    }
  }

  // A session that began anew has another form token, which a new page has. A second refusal has another reason.
  function mayReload() {
    const last = Number(sessionStorage.getItem("rewardloop-reloaded") ?? 0);
    sessionStorage.setItem("rewardloop-reloaded", String(Date.now()));
    return Date.now() - last > 30000;
  }

  async function undo() {
    if (isSending) return;
    isSending = true;
    const version = document.getElementById("guidelines").dataset.version;
    const response = await sendForm(`${address}/undo`, { guideline_version: version }, formToken);
    isSending = false;
    if (response && response.status === 401) return location.assign(response.headers.get("hx-redirect"));
    if (!response) return say("The console does not answer. Nothing was taken back; try again.");
    const text = await response.text();
    if (!response.ok) return say(new DOMParser().parseFromString(text, "text/html").body.textContent.trim());
    say("");
    put(text);
  }

  function setMode(kind) {
    if (!task().dataset.kinds.split(" ").includes(kind)) return;
    task().dataset.mode = kind;
    for (const each of form().querySelectorAll("[data-panel]")) each.hidden = each.dataset.panel !== kind;
    for (const each of form().querySelectorAll("[data-set-mode]")) {
      each.setAttribute("aria-pressed", String(each.dataset.setMode === kind));
    }
    if (kind === "edit") writeOn();
  }

  function writeOn() {
    const text = form().elements.edited_text;
    text.focus();
    text.setSelectionRange(text.value.length, text.value.length);
  }

  function mark(index) {
    const fields = [...(form()?.querySelectorAll(".grades") ?? [])];
    if (!fields.length) return;
    marked = Math.max(0, Math.min(fields.length - 1, index));
    fields.forEach((each, i) => each.classList.toggle("marked", i === marked));
  }

  function grade(digit) {
    const field = form().querySelectorAll(".grades")[marked];
    const radio = field.querySelector(`input[type="radio"][value="${digit}"]`);
    if (!radio) return;
    radio.checked = true;
    mark(marked + 1);
  }

  function showAsItIs(is) {
    isAsItIs = is;
    for (const each of document.querySelectorAll("#task .source")) each.hidden = !is;
    for (const each of document.querySelectorAll("#task .formatted")) each.hidden = is;
  }

  function openFold(name, field) {
    form().querySelector(`[data-fold="${name}"]`).open = true;
    form().elements[field].focus();
  }

  function digit(number) {
    if (form().querySelector('[data-fold="skip"]').open) {
      return form().querySelectorAll("[data-reason]")[number - 1]?.click();
    }
    if (mode() === "choice" && number <= 2) return answer(`choice:${number - 1}`);
    if (mode() === "ranking") {
      const list = form().querySelector(".ranking");
      if (pickRanked(list, number - 1)) ranked(rankingOrder(list));
    }
    if (mode() === "rating") grade(number);
    if (mode() === "edit" && form().elements.edited.options[number - 1]) {
      form().elements.edited.value = String(number - 1);
      fillEdit();
      writeOn();
    }
  }

  function arrow(key, target) {
    if (mode() === "choice" && key === "ArrowLeft") return answer("choice:0");
    if (mode() === "choice" && key === "ArrowRight") return answer("choice:1");
    const by = { ArrowUp: -1, ArrowDown: 1 }[key];
    if (by && mode() === "rating") return mark(marked + by);
    const item = target.closest?.(".ranking li");
    if (!by || !item) return undefined;
    const isMoved = moveRanked(item, by);
    item.focus();
    if (isMoved) ranked(rankingOrder(item.parentNode));
    return undefined;
  }

  const LETTERS = {
    c: () => setMode("choice"),
    k: () => setMode("ranking"),
    r: () => setMode("rating"),
    e: () => setMode("edit"),
    a: () => mode() === "ranking" && form().querySelector("[data-as-shown]")?.click(),
    t: () => mode() === "choice" && answer("tie"),
    s: () => openFold("skip", "reason"),
    n: () => openFold("comment", "comment"),
  };

  function onKey(event) {
    if (event.repeat || event.altKey || event.metaKey || dialog.open) return;
    const isText = event.target.matches("textarea, select, input:not([type='radio'])");
    // A browser would press the form's first button, which may be that of another kind of answer.
    if (event.key === "Enter" && form() && (event.ctrlKey || event.target.matches("#answer input"))) {
      event.preventDefault();
      return sendWritten(event.target.id === "reason" ? "skip" : mode());
    }
    if (isText && event.key === "Escape") return event.target.blur();
    if (isText || event.ctrlKey) return undefined;
    return onPlainKey(event);
  }

  function sendWritten(verdict) {
    if (performance.now() - shownAt < SETTLE_MS) return undefined;
    return verdict === "choice" ? say("Say which is better: leave the text with Esc, then press 1, 2 or T.") : answer(verdict);
  }

  function onPlainKey(event) {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const isButton = event.target.matches("button, a, summary");
    const done = () => event.preventDefault();
    if (key === "?") return done(), dialog.showModal();
    if (key === "u") return done(), undo();
    if (key === "m") return done(), showAsItIs(!isAsItIs);
    if (key === "g") return done(), toggleGuidelines();
    if (!form() || performance.now() - shownAt < SETTLE_MS) return undefined;
    if (/^[0-9]$/.test(key)) return done(), digit(Number(key));
    if (LETTERS[key]) return done(), LETTERS[key]();
    if (key === "Enter" && !isButton && ["ranking", "rating"].includes(mode())) return done(), answer(mode());
    if (key.startsWith("Arrow")) {
      const isScrolled = event.target.matches(".scrolled") && mode() !== "choice";
      if (!isScrolled && (mode() !== "choice" || !key.match(/Up|Down/))) return done(), arrow(key, event.target);
    }
    return undefined;
  }

  function toggleGuidelines() {
    const details = document.querySelector("#guidelines details");
    if (details) details.open = !details.open;
  }

  document.addEventListener("keydown", onKey);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) hiddenSince = performance.now();
    else if (hiddenSince !== null) {
      hiddenMs += performance.now() - hiddenSince;
      hiddenSince = null;
    }
  });
  page.addEventListener("submit", (event) => {
    if (!event.target.matches("[data-undo]")) return;
    event.preventDefault();
    undo();
  });
  page.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.setMode) setMode(button.dataset.setMode);
    if (button?.dataset.reason) {
      form().elements.reason.value = button.dataset.reason;
      answer("skip");
    }
  });
  document.getElementById("show-keys").addEventListener("click", () => dialog.showModal());

  setUp();
  // On a narrow screen the guidelines are below the task, and folded.
  if (matchMedia("(max-width: 60rem)").matches) toggleGuidelines();
  const [first] = pendingAnswers(address, person);
  if (first) deliver(first.fields);
})();
