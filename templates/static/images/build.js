// Keeps the steps of a build up to date: asks once a second, replaces what changed, reloads at the end.
"use strict";
(() => {
  const build = document.getElementById("build");
  const underWay = (root) => root.querySelector("#status")?.dataset.underWay === "yes";
  if (!build || !underWay(build)) return;
  const steps = build.querySelector("#steps");

  const finished = () => {
    let last = 0;
    for (const step of steps.children) {
      if (step.dataset.state === "running") break;
      last = step.dataset.number;
    }
    return last;
  };

  const show = (page) => {
    const status = page.querySelector("#status");
    const old = build.querySelector("#status");
    if (old.innerHTML !== status.innerHTML) old.replaceWith(status);
    for (const step of [...page.querySelectorAll("#steps > li")]) {
      const known = document.getElementById(step.id);
      if (!known) steps.append(step);
      else if (known.innerHTML !== step.innerHTML) {
        const before = known.querySelector(".output");
        const away = before ? before.scrollHeight - before.clientHeight - before.scrollTop : 0;
        const place = before ? before.scrollTop : 0;
        known.replaceWith(step);
        const output = step.querySelector(".output");
        if (output) output.scrollTop = away < 30 ? output.scrollHeight : place;
      }
    }
  };

  const look = async () => {
    let wait = 1000;
    try {
      const answer = await fetch(`${build.dataset.live}?after=${finished()}`);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!answer.ok) throw new Error(answer.statusText);
      if (!underWay(page)) return location.reload(); // ended, or the login page
      show(page);
      build.classList.remove("away");
    } catch {
      build.classList.add("away"); // the server is restarting: the page says so and goes on asking
      wait = 3000;
    }
    setTimeout(look, wait);
  };
  setTimeout(look, 1000);
})();
