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
    const count = rollout.weights.length;
    let chosen = -1;
    let focused = -1;

    // What was folded away is no part of the page until it is asked for.
    function addFolded() {
      for (const [text, tint, marks] of rollout.folded) {
        const token = document.createElement("span");
        token.className = marks ? `t ${marks}` : "t";
        token.style.setProperty("--w", tint);
        token.textContent = text;
        token.setAttribute("role", "option");
        token.tabIndex = -1;
        indexOf.set(token, tokens.length);
        tokens.push(token);
        response.append(token);
      }
      rollout.folded = [];
    }

    function paint(values) {
      for (const map of maps) {
        const start = Number(map.dataset.start);
        [...map.children].forEach((cell, i) => cell.setAttribute("fill-opacity", (values[start + i] / 255).toFixed(3)));
      }
    }

    function describe(index) {
      const parts = [`token ${index + 1} of ${count}`, `weight ${rollout.weights[index]}`];
      if (rollout.density !== null) parts.push(`density ${show(rollout.density[index])}`);
      if (rollout.entropy !== null) parts.push(`entropy ${show(rollout.entropy[index])} nats`);
      if (tokens[index].classList.contains("a")) parts.push("anchor");
      if (rollout.clusters !== null) parts.push(`cluster ${rollout.clusters[index]}`);
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
    if (response.classList.contains("long")) fold(response, count, addFolded);
    if (rollout.clusters !== null) setUpClusters(article, rollout.clusters, tokens, addFolded);
    if (rollout.heads !== null) setUpHeads(article, rollout.heads, paintHead, () => choose(focused));

    // A head's map has cells of its own number: the overlay is drawn anew in its grid. A picture whose file is gone has
    // no overlay, but its cells are in the map.
    function paintHead(head) {
      const sizes = rollout.heads.grids.map(([rows, columns]) => rows * columns);
      maps.forEach((map) => {
        const picture = Number(map.dataset.picture);
        const [rows, columns] = rollout.heads.grids[picture];
        const start = sizes.slice(0, picture).reduce((sum, size) => sum + size, head * rollout.heads.cells);
        const [, , width, height] = map.getAttribute("viewBox").split(" ").map(Number);
        const first = Number(map.dataset.start);
        [...map.children].forEach((cell, i) => {
          const row = Math.floor((Math.floor(i / width) * rows) / height);
          const column = Math.floor(((i % width) * columns) / width);
          cell.setAttribute("fill-opacity", (rollout.heads.bytes[start + row * columns + column] / 255).toFixed(3));
        });
      });
    }
  }

  function setUpClusters(article, clusters, tokens, addFolded) {
    const view = article.querySelector("details.clusters");
    const mark = (cluster) => {
      tokens.forEach((token, i) => token.classList.toggle("in", clusters[i] === cluster));
      view.querySelectorAll("[data-cluster]").forEach((part) => {
        part.classList.toggle("in", Number(part.dataset.cluster) === cluster);
      });
    };
    view.addEventListener("toggle", () => view.open && addFolded());
    view.querySelectorAll("[data-cluster]").forEach((part) => {
      const cluster = Number(part.dataset.cluster);
      part.addEventListener("pointerenter", () => mark(cluster));
      part.addEventListener("pointerleave", () => mark(-1));
      part.addEventListener("focusin", () => mark(cluster));
      part.addEventListener("focusout", () => mark(-1));
    });
  }

  // One small canvas a head, drawn when the reader first asks for them.
  function setUpHeads(article, heads, paintHead, restore) {
    const view = article.querySelector("details.heads");
    const grid = view.querySelector(".head-grid");
    heads.bytes = bytes(heads.levels);
    heads.cells = heads.grids.reduce((sum, [rows, columns]) => sum + rows * columns, 0);
    view.addEventListener("toggle", () => {
      if (!view.open || grid.childElementCount) return;
      grid.style.setProperty("--heads", heads.heads);
      for (let head = 0; head < heads.layers * heads.heads; head += 1) grid.append(headButton(heads, head));
    });
    const headOf = (event) => Number(event.target.closest("button")?.dataset.head ?? -1);
    const shown = (event) => headOf(event) >= 0 && paintHead(headOf(event));
    grid.addEventListener("pointerover", shown);
    grid.addEventListener("focusin", shown);
    grid.addEventListener("pointerleave", restore);
    grid.addEventListener("focusout", restore);
  }

  function headButton(heads, head) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.head = head;
    const name = `layer ${Math.floor(head / heads.heads)}, head ${head % heads.heads}`;
    button.title = `${name}: up to ${heads.peaks[head]}`;
    button.setAttribute("aria-label", button.title);
    // All pictures side by side, a cell apart.
    const width = heads.grids.reduce((sum, [, columns]) => sum + columns, heads.grids.length - 1);
    const height = Math.max(...heads.grids.map(([rows]) => rows));
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    let start = head * heads.cells;
    let left = 0;
    for (const [rows, columns] of heads.grids) {
      const pixels = new ImageData(columns, rows);
      for (let i = 0; i < rows * columns; i += 1) pixels.data.set([214, 0, 108, heads.bytes[start + i]], 4 * i);
      canvas.getContext("2d").putImageData(pixels, left, 0);
      start += rows * columns;
      left += columns + 1;
    }
    button.append(canvas);
    return button;
  }

  function fold(response, count, addFolded) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "unfold";
    const label = () => {
      const open = response.classList.contains("open");
      button.textContent = open ? "Fold the response" : `Show all ${count.toLocaleString("en")} tokens`;
      button.setAttribute("aria-expanded", String(open));
    };
    button.addEventListener("click", () => {
      addFolded();
      response.classList.toggle("open");
      label();
    });
    label();
    response.after(button);
  }

  document.querySelectorAll(".rollout").forEach(setUp);
})();
