"use strict";
// Pointing at a token, or moving to it with the keyboard, shows where that token looked.
(() => {
  const data = JSON.parse(document.getElementById("rollout-data").textContent);

  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const show = (value) => (value === null ? "not finite" : String(value));

  function setUp(article) {
    const rollout = data[Number(article.dataset.rollout)];
    const response = article.querySelector(".response");
    const tokens = [...response.querySelectorAll(".t")];
    const maps = [...article.querySelectorAll(".heat")];
    const readout = article.querySelector(".readout");
    const overviewText = readout === null ? "" : readout.textContent;
    const heat = rollout.heat;
    const levels = heat === null ? null : bytes(heat.levels);
    const size = heat === null ? 0 : heat.overview.length;
    const mapOf = new Map(heat === null ? [] : (heat.kept ?? tokens.map((_, i) => i)).map((token, map) => [token, map]));
    let chosen = -1;
    let focused = -1;

    function paint(values) {
      for (const map of maps) {
        const start = Number(map.dataset.start);
        [...map.children].forEach((cell, i) => cell.setAttribute("fill-opacity", (values[start + i] / 255).toFixed(3)));
      }
    }

    function describe(index) {
      const parts = [`token ${index + 1} of ${tokens.length}`, `weight ${rollout.weights[index]}`];
      if (rollout.density !== null) parts.push(`density ${show(rollout.density[index])}`);
      if (rollout.entropy !== null) parts.push(`entropy ${show(rollout.entropy[index])} nats`);
      if (tokens[index].classList.contains("a")) parts.push("anchor");
      const map = mapOf.get(index);
      if (map !== undefined) {
        parts.push(`attention up to ${show(heat.peaks[map])}`);
      } else if (heat !== null) {
        parts.push("its heat map was left out to keep the page small");
      }
      return parts.join(" · ");
    }

    function choose(index) {
      if (chosen >= 0) tokens[chosen].classList.remove("chosen");
      chosen = index;
      if (index < 0) {
        if (readout !== null) readout.textContent = overviewText;
        if (heat !== null) paint(heat.overview);
        return;
      }
      tokens[index].classList.add("chosen");
      if (readout !== null) {
        const name = document.createElement("b");
        name.textContent = `“${tokens[index].textContent.trim()}”`;
        readout.replaceChildren(name, ` ${describe(index)}`);
      } else {
        tokens[index].title = describe(index);
      }
      const map = mapOf.get(index);
      if (heat !== null) paint(map === undefined ? new Uint8Array(size) : levels.subarray(map * size, (map + 1) * size));
    }

    // One stop of the tab key for the whole response; the arrow keys move inside it.
    function moveTo(index) {
      const target = Math.max(0, Math.min(tokens.length - 1, index));
      tokens[target].focus();
    }

    response.setAttribute("role", "listbox");
    response.setAttribute("aria-orientation", "horizontal");
    tokens.forEach((token, i) => {
      token.setAttribute("role", "option");
      token.tabIndex = i === 0 ? 0 : -1;
    });
    const indexOf = new Map(tokens.map((token, i) => [token, i]));
    const indexAt = (event) => indexOf.get(event.target) ?? -1;

    response.addEventListener("pointerover", (event) => {
      if (indexAt(event) >= 0) choose(indexAt(event));
    });
    response.addEventListener("pointerleave", () => choose(focused));
    response.addEventListener("focusin", (event) => {
      if (indexAt(event) < 0) return;
      focused = indexAt(event);
      response.querySelector('[tabindex="0"]').tabIndex = -1;
      tokens[focused].tabIndex = 0;
      choose(focused);
    });
    response.addEventListener("focusout", () => {
      focused = -1;
      choose(-1);
    });
    response.addEventListener("keydown", (event) => {
      const here = indexAt(event);
      const moves = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tokens.length - 1 };
      if (event.key === "Escape") choose((focused = -1));
      else if (here >= 0 && event.key in moves) moveTo(moves[event.key]);
      else return;
      event.preventDefault();
    });
    if (response.classList.contains("long")) fold(response, tokens.length);
  }

  function fold(response, count) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "unfold";
    const label = () => {
      const open = response.classList.contains("open");
      button.textContent = open ? "Fold the response" : `Show all ${count.toLocaleString("en")} tokens`;
      button.setAttribute("aria-expanded", String(open));
    };
    button.addEventListener("click", () => {
      response.classList.toggle("open");
      label();
    });
    label();
    response.after(button);
  }

  document.querySelectorAll(".rollout").forEach(setUp);
})();
