// Orders a list: by dragging with a mouse or a finger, by its arrows, by the arrow keys, and by numbers.
"use strict";

function rankingOrder(list) {
  return [...list.children].map((item) => item.dataset.index).join(",");
}

function setUpRanking(list, onChange) {
  let dragged = null;
  let before = "";
  const changed = () => onChange(rankingOrder(list));
  list.addEventListener("pointerdown", (event) => {
    const item = event.target.closest("li");
    if (!item || event.target.closest("button") || event.button !== 0) return;
    if (event.pointerType === "touch" && !event.target.closest(".handle")) return; // a finger scrolls there
    dragged = item;
    before = rankingOrder(list);
    item.classList.add("dragged");
    list.setPointerCapture(event.pointerId);
  });
  list.addEventListener("pointermove", (event) => {
    if (!dragged) return;
    for (const item of list.children) {
      if (item === dragged) continue;
      const box = item.getBoundingClientRect();
      if (event.clientY < box.top || event.clientY > box.bottom) continue;
      const isBefore = event.clientY < box.top + box.height / 2;
      list.insertBefore(dragged, isBefore ? item : item.nextSibling);
    }
  });
  const drop = () => {
    if (!dragged) return;
    dragged.classList.remove("dragged");
    dragged = null;
    if (rankingOrder(list) !== before) changed();
  };
  list.addEventListener("pointerup", drop);
  list.addEventListener("pointercancel", drop);
  list.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-move]");
    if (!button) return;
    const isMoved = moveRanked(button.closest("li"), Number(button.dataset.move));
    button.focus();
    if (isMoved) changed();
  });
}

// Returns whether there was a place to move to.
function moveRanked(item, by) {
  const other = by < 0 ? item.previousElementSibling : item.nextElementSibling;
  if (other) item.parentNode.insertBefore(item, by < 0 ? other : other.nextSibling);
  return other !== null;
}

// Puts a response behind those that were picked before by their number. A second press takes the pick back.
function pickRanked(list, index) {
  const item = [...list.children].find((each) => each.dataset.index === String(index));
  if (!item) return false;
  const isPicked = item.classList.toggle("picked");
  const picked = [...list.children].filter((each) => each.classList.contains("picked") && each !== item);
  const last = picked.at(-1);
  list.insertBefore(item, last ? last.nextSibling : list.firstChild);
  if (!isPicked && last) list.insertBefore(item, last.nextSibling);
  return true;
}
