// Answers that are on their way. Each is kept in this browser until the service has recorded or refused it for good, so
// that a closed tab, a lost network or a restarted server loses none. Nothing else is kept, and nobody else's is sent.
"use strict";

const PENDING = "rewardloop-pending:";
// Browsers let a closed page's requests have 64 KiB altogether.
const MOST_KEPT_ALIVE = 60000;

function keepPending(address, person, fields) {
  const entry = { address, person, fields, time: Date.now() };
  try {
    localStorage.setItem(PENDING + fields.lease, JSON.stringify(entry));
  } catch (error) {
    return false; // there is no room, or the browser keeps nothing: the answer is sent all the same
  }
  return true;
}

function forgetPending(lease) {
  localStorage.removeItem(PENDING + lease);
}

// Answers of this person to this project that were not recorded yet, oldest first.
function pendingAnswers(address, person) {
  const found = [];
  for (let i = 0; i < localStorage.length; i++) {
    const key = localStorage.key(i);
    if (!key.startsWith(PENDING)) continue;
    const entry = JSON.parse(localStorage.getItem(key));
    if (entry.address === address && entry.person === person) found.push(entry);
  }
  return found.sort((a, b) => a.time - b.time);
}

// Send a form of this console. Resolves to a response, or to null if none came.
async function sendForm(address, fields, formToken) {
  const body = new URLSearchParams({ ...fields, form_token: formToken }).toString();
  try {
    return await fetch(address, {
      method: "POST",
      body,
      headers: { "content-type": "application/x-www-form-urlencoded", "x-part": "true", "hx-request": "true" },
      credentials: "same-origin",
      redirect: "manual",
      keepalive: body.length < MOST_KEPT_ALIVE,
    });
  } catch (error) {
    return null;
  }
}
