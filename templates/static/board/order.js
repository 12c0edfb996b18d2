// Ordering: the server says what would happen to whom, a dialog shows it, and keeps what was typed when the order fails.
export function startOrdering(board) {
  const selection = document.getElementById("selection");
  if (!selection) return;
  const dialog = board.querySelector("[data-dialog]");
  const said = board.querySelector("[data-said]");
  let quiet = 0;

  function say(text, kind = "") {
    clearTimeout(quiet);
    said.textContent = text;
    said.className = `said ${kind}`;
    quiet = setTimeout(() => (said.textContent = ""), 8000);
  }

  // The answer, or an Error in words people can use.
  async function post(form, submitter) {
    let answer;
    try {
      answer = await fetch(submitter?.getAttribute("formaction") ?? form.getAttribute("action"), {
        method: "POST",
        body: new FormData(form, submitter),
        headers: { "X-Requested-With": "fetch" },
        redirect: "manual",
      });
    } catch {
      throw new Error("The server does not answer. Try again in a moment.");
    }
    if (answer.ok) return answer;
    if (answer.type === "opaqueredirect") throw new Error("You are logged out. Reload the page to log in again.");
    if (answer.headers.get("Content-Type")?.includes("problem+json")) {
      const { detail, hint } = await answer.json();
      throw new Error(`${detail} ${hint}`.trim());
    }
    if (answer.status === 404) throw new Error("One of these PCs is no longer at this site. Close this and choose again.");
    if (answer.status === 403) throw new Error("This page is out of date: you logged in anew since. Reload it.");
    throw new Error(`The server could not do that (${answer.status}). Try again, and tell whoever runs it.`);
  }

  async function busy(button, work) {
    if (button.disabled) return;
    button.disabled = true;
    button.setAttribute("aria-busy", "true");
    try {
      await work();
    } finally {
      button.disabled = false;
      button.removeAttribute("aria-busy");
    }
  }

  selection.addEventListener("submit", (event) => {
    if (event.submitter?.hasAttribute("data-elsewhere")) return; // a page of its own
    event.preventDefault();
    const button = event.submitter ?? selection.querySelector("[name=verb]");
    const asked = post(selection, button); // a disabled button would not be part of the form
    busy(button, async () => {
      try {
        dialog.innerHTML = await (await asked).text();
      } catch (error) {
        say(error.message, "wrong");
      }
    }).then(() => {
      if (!dialog.firstElementChild) return;
      button.focus(); // it was disabled for a moment; the dialog gives the focus back to it
      dialog.showModal();
      // On a phone the keyboard would hide the reasons one can tap.
      if (matchMedia("(pointer: coarse)").matches) dialog.querySelector("[data-reason], [data-close]").focus();
    });
  });

  dialog.addEventListener("click", (event) => {
    const suggestion = event.target.closest("[data-reason]");
    if (suggestion) {
      const input = dialog.querySelector("#reason");
      input.value = suggestion.textContent;
      dialog.querySelector("[data-send]").focus();
    } else if (event.target.closest("[data-close]")) {
      event.preventDefault();
      dialog.close();
    } else if (event.target === dialog) dialog.close(); // its backdrop
  });
  dialog.addEventListener("close", () => dialog.replaceChildren());

  dialog.addEventListener("submit", (event) => {
    event.preventDefault();
    const form = event.target;
    const problem = form.querySelector("[data-problem]");
    const send = form.querySelector("[data-send]");
    problem.hidden = true;
    busy(send, async () => {
      try {
        const { said: text } = await (await post(form)).json();
        dialog.close();
        say(text);
        board.dispatchEvent(new Event("board:ordered"));
      } catch (error) {
        problem.textContent = error.message;
        problem.hidden = false;
        form.querySelector("#reason").focus();
      }
    });
  });

  document.getElementById("cancel").addEventListener("submit", (event) => {
    event.preventDefault();
    const button = event.submitter;
    const answer = post(event.target, button);
    busy(button, async () => {
      try {
        say((await (await answer).json()).said);
      } catch (error) {
        say(error.message, "wrong");
      }
    });
  });
}
