// Says below the volatile rules of an image, while they are typed, what each would copy into the memory of every client.
"use strict";
(() => {
  const weights = document.getElementById("weights");
  const field = document.getElementById("id_volatile");
  const token = document.querySelector("input[name=csrfmiddlewaretoken]");
  if (!weights || !field || !token) return;
  field.closest(".form-row").append(weights);

  const element = (name, text, kind = "") => {
    const made = document.createElement(name);
    made.textContent = text;
    made.className = kind;
    return made;
  };

  const show = (answer) => {
    const table = document.createElement("table");
    for (const rule of answer.rules.filter((one) => one.bytes || one.files || one.problem)) {
      const row = table.insertRow();
      row.append(element("th", rule.rule));
      row.append(element("td", rule.problem || rule.said, rule.problem ? "problem" : "figure"));
    }
    const by = `, as ${answer.version} has it`;
    const whole = answer.version ? `Every client holds a copy of ${answer.said}${by}.` : "What they copy is told once a version is ready.";
    weights.replaceChildren(element("p", whole), table);
    if (answer.refusal) weights.prepend(element("p", answer.refusal, "refusal"));
    weights.hidden = false;
  };

  let under = null;
  const ask = async () => {
    under?.abort();
    under = new AbortController();
    const body = new URLSearchParams({ volatile: field.value, csrfmiddlewaretoken: token.value });
    try {
      const answer = await fetch(weights.dataset.url, { method: "POST", body, signal: under.signal });
      if (!answer.ok) throw new Error(answer.statusText);
      show(await answer.json());
    } catch (error) {
      if (error.name !== "AbortError") weights.hidden = true; // no word is better than an old one; saving tells it all
    }
  };

  let wait = 0;
  field.addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(ask, 400);
  });
  ask();
})();
