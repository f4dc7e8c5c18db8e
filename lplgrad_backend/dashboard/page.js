// Keeps the page as it is now: asks for it again and exchanges the parts that have changed, without a reload.
"use strict";

const BUSY = 1500;
const IDLE = 5000;
const HIDDEN = 30000;

function focusables(part) {
  return Array.from(part.querySelectorAll("a[href], summary, [tabindex]"));
}

function exchange(part, fresh) {
  const open = new Set(Array.from(part.querySelectorAll("details[open]"), (details) => details.id));
  const shown = fresh.cloneNode(true);
  shown.querySelectorAll("details").forEach((details) => { details.open = open.has(details.id); });
  if (shown.innerHTML === part.innerHTML) return;
  const focused = focusables(part).indexOf(document.activeElement);
  part.replaceChildren(...shown.childNodes);
  if (focused >= 0) focusables(part)[focused]?.focus({ preventScroll: true });
}

function say(text) {
  const said = document.getElementById("said");
  if (said.textContent !== text) said.textContent = text; // read out only when it is news
}

async function look() {
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-cache" });
    if (!answer.ok) throw new Error(String(answer.status));
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const other = fresh.getElementById(part.id);
      if (other) exchange(part, other);
    }
    say(fresh.getElementById("said").textContent);
  } catch {
    say("The backend does not answer; what is shown may be old.");
  }
  const rest = document.querySelector("progress") ? BUSY : IDLE;
  setTimeout(look, document.hidden ? HIDDEN : rest);
}

setTimeout(look, BUSY);
