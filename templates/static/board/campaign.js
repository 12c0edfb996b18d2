// A campaign's page while it is under way: the part that moves is fetched every second, and only what changed is replaced.
const EVERY = 1000; // ms
const word = document.querySelector("[data-line-word]");
const progress = () => document.querySelector("[data-progress]");

function say(text) {
  if (word.textContent !== text) word.textContent = text;
}

// Buttons that stay the same are not touched: who is about to press one, presses that one.
function update(now, fresh) {
  now.toggleAttribute("data-live", fresh.hasAttribute("data-live"));
  for (const part of now.querySelectorAll("[data-part]")) {
    const next = fresh.querySelector(`[data-part="${part.dataset.part}"]`);
    if (part.isEqualNode(next)) continue;
    const focused = part.contains(document.activeElement) ? document.activeElement.textContent : "";
    part.className = next.className;
    part.hidden = next.hidden;
    part.replaceChildren(...next.childNodes);
    // By its word, not its place: where "Pause" was, another button may be by now.
    if (focused) [...part.querySelectorAll("button")].find((button) => button.textContent === focused)?.focus();
  }
}

async function look() {
  try {
    const answer = await fetch(location.pathname, { headers: { "X-Requested-With": "fetch" }, redirect: "manual" });
    if (answer.type === "opaqueredirect") return say("You are logged out. Reload the page to log in again.");
    if (answer.status === 404) return say("You may no longer watch this site.");
    if (!answer.ok) throw new Error(answer.status);
    const template = document.createElement("template");
    template.innerHTML = (await answer.text()).trim();
    update(progress(), template.content.firstElementChild);
    say(progress().hasAttribute("data-live") ? "live" : "ended");
  } catch {
    say("reconnecting …");
  }
  again();
}

function again() {
  if (progress().hasAttribute("data-live")) setTimeout(look, EVERY);
}
again();
