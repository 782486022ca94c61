// Pages, sorts and filters the table of runs, and draws the pictures of those in view.
// Texts reach the page as text only (textContent, attributes), never as HTML.
(() => {
  "use strict";
  const PER_PAGE = 25;
  const SVG = "http://www.w3.org/2000/svg";
  const byId = (id) => document.getElementById(id);
  const table = byId("runs");
  const body = table.tBodies[0];
  const all = [...body.rows]; // in the order of the file: outliers first
  const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  let shown = all;
  let page = 0;
  let sorted = { column: -1, down: false };
  let addresses = []; // of the images on show, to be given back

  function make(name, attributes, ...children) {
    const element = name in { svg: 1, path: 1, line: 1, text: 1, image: 1, g: 1 }
      ? document.createElementNS(SVG, name)
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      // The page's policy forbids style attributes, but not styles that its own script sets.
      if (key === "style") element.style.cssText = value;
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }

  function address(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const url = URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
    addresses.push(url);
    return url;
  }

  // ---------------------------------------------------------------- slices

  function slice(tile, picture, url, row, label, widths) {
    const high = picture.height;
    const drop = high - tile.height; // stand on a common line
    const last = picture.tiles[picture.tiles.length - 1];
    const size = high * 0.085;
    const view = make("svg", {
      viewBox: `0 0 ${tile.width} ${high}`,
      style: `--wide:${tile.width / widths.wide};--narrow:${tile.width / widths.narrow}`,
      role: "img",
      "aria-label": `${label}, slice ${tile.plane} of axis ${"XYZ"[tile.axis]}`,
    });
    const inside = make("g", { transform: `translate(0 ${drop})` });
    inside.append(make("image", {
      href: url, x: -tile.x, y: -(row === 1 ? high : 0),
      width: last.x + last.width, height: 2 * high,
    }));
    const voxels = make("g", {
      transform: `scale(${tile.width / tile.columns} ${tile.height / tile.rows})`,
    });
    if (row === 0) voxels.append(make("path", { class: "mask", d: tile.mask }));
    if (row === 2 && tile.patch) {
      let lines = "";
      for (let x = 0; x <= tile.columns; x += tile.patch[0]) lines += `M${x} 0v${tile.rows}`;
      for (let y = 0; y <= tile.rows; y += tile.patch[1]) lines += `M0 ${y}h${tile.columns}`;
      voxels.append(
        make("path", { class: "dropped", d: tile.dropped }),
        make("path", { class: "grid", d: lines }),
      );
    }
    inside.append(voxels);
    view.append(inside);
    const write = (text, x, y, anchor, name) => view.append(make("text", {
      x, y, "text-anchor": anchor, "font-size": size, class: name || "",
    }, text));
    const edge = size * 0.25;
    write(tile.letters[0], edge, high / 2, "start");
    write(tile.letters[1], tile.width - edge, high / 2, "end");
    write(tile.letters[3], tile.width / 2, size, "middle");
    if (tile === picture.tiles[0]) write(label, edge, high - edge, "start", "name");
    return view;
  }

  function slices(picture) {
    const url = address(picture.atlas);
    const sum = (tiles) => tiles.reduce((total, tile) => total + tile.width, 0) * 1.0001;
    const widths = { wide: sum(picture.tiles), narrow: sum(picture.tiles.slice(0, 3)) };
    const figure = make("div", { class: "figures" });
    ["mean", "SD in time", "kept tokens"].forEach((label, row) => {
      const line = make("div", { class: "slices" });
      for (const tile of picture.tiles) line.append(slice(tile, picture, url, row, label, widths));
      figure.append(line);
    });
    const share = picture.patches
      ? `Kept: ${picture.kept.toLocaleString("en")} of ${picture.patches.toLocaleString("en")} ` +
        `patches (${(100 * picture.kept / picture.patches).toFixed(1)} %); grey ones are dropped.`
      : "The patch size does not divide this run's grid: no tokens.";
    figure.append(make("div", { class: "soft" }, `Orange: edge of the brain mask. ${share}`));
    return figure;
  }

  // ---------------------------------------------------------------- curves

  function plot(caption, height, ...parts) {
    return make("figure", {}, make("figcaption", {}, caption), make("svg", {
      viewBox: `0 0 1000 ${height}`, preserveAspectRatio: "none", style: `height:${height}px`,
      role: "img", "aria-label": caption,
    }, ...parts));
  }

  function curve(values, low, high, height) {
    const span = high - low || 1;
    const across = values.length > 1 ? 1000 / (values.length - 1) : 0;
    const points = values.map((value, i) => {
      const y = 3 + (height - 6) * (1 - (Math.min(Math.max(value, low), high) - low) / span);
      return `${(i * across).toFixed(1)} ${y.toFixed(1)}`;
    });
    return make("path", { class: "curve", d: "M" + points.join("L") });
  }

  function ends(...texts) {
    return make("div", { class: "ends" }, ...texts.map((text) => make("span", {}, text)));
  }

  const short = (value) => Number(value.toPrecision(3)).toString();

  function histogram(picture) {
    const found = picture.histogram;
    if (!found) return make("p", { class: "soft" }, "The run cannot be scaled: no histogram.");
    const most = Math.max(...found.shares);
    const wide = 1000 / found.shares.length;
    let bars = "";
    found.shares.forEach((share, i) => {
      const high = 74 * share / most;
      if (share) bars += `M${(i * wide).toFixed(1)} 80v${(-high).toFixed(1)}h${(wide * 0.9).toFixed(1)}v${high.toFixed(1)}z`;
    });
    const parts = [make("path", { class: "bars", d: bars })];
    let caption = "Intensities after scaling";
    if (picture.background !== null) {
      const place = (picture.background - found.low) / (found.high - found.low);
      const x = 1000 * Math.min(Math.max(place, 0.002), 0.998);
      parts.push(make("line", { class: "level", x1: x, x2: x, y1: 0, y2: 80 }));
      const outside = place < 0 || place > 1 ? ", outside the range shown" : "";
      caption += `; orange: background, ${short(picture.background)}${outside}`;
    }
    const figure = plot(caption, 80, ...parts);
    figure.append(ends(`≤ ${found.low}`, short((found.low + found.high) / 2), `≥ ${found.high}`));
    return figure;
  }

  function plots(picture) {
    const box = make("div", { class: "plots" }, histogram(picture));
    const jumps = picture.difference;
    if (jumps.length) {
      const top = Math.max(2, ...jumps);
      const apart = picture.step > 1 ? ` (frames ${picture.step} apart)` : "";
      box.append(plot(
        `Difference from the frame before${apart}, median 1, largest ${short(Math.max(...jumps))}`,
        46, curve(jumps, 0, top, 46),
      ));
    }
    const signal = picture.global;
    const low = Math.min(...signal), high = Math.max(...signal);
    box.append(plot(
      `Global signal, standard deviations of the run: ${short(low)} to ${short(high)}`,
      46, curve(signal, low, high, 46),
    ));
    const carpet = make("figure", {},
      make("figcaption", {}, "Carpet: edge of the brain on top, depth below; grey ±2 robust SD"),
      make("img", { src: address(picture.carpet), alt: "carpet plot of the run" }));
    const seconds = picture.tr ? `, ${short(picture.frames * picture.tr / 60)} min` : "";
    carpet.append(ends("frame 1", `frame ${picture.frames}${seconds}`));
    box.append(carpet);
    return box;
  }

  // ---------------------------------------------------------------- one run

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      fill(entry.target);
    }
  }, { rootMargin: "800px" });

  function fill(card) {
    const data = byId("p" + card.dataset.place);
    if (!data) return;
    const picture = JSON.parse(data.textContent);
    card.append(make("div", { class: "panels" }, slices(picture), plots(picture)));
  }

  function card(row) {
    const place = row.id.slice(1);
    const cells = [...row.cells];
    const facts = cells.slice(2).map((cell, i) => `${titles[i + 2]}: ${cell.textContent}`)
      .filter((_, i) => cells[i + 2].textContent);
    const item = make("article", { id: "c" + place, "data-place": place },
      make("h3", {}, cells[0].textContent));
    const reasons = [...cells[1].children];
    if (reasons.length) {
      item.classList.add("flagged");
      item.append(make("ul", {}, ...reasons.map((one) => make("li", {}, one.textContent))));
    }
    if (facts.length) item.append(make("div", { class: "soft" }, facts.join(" · ")));
    return item;
  }

  // ---------------------------------------------------------------- the table

  function render() {
    const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const rows = shown.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
    body.replaceChildren(...rows);
    watcher.disconnect();
    addresses.forEach((url) => URL.revokeObjectURL(url));
    addresses = [];
    const cards = rows.map(card);
    byId("cards").replaceChildren(...cards);
    cards.forEach((item) => watcher.observe(item));
    const first = shown.length ? page * PER_PAGE + 1 : 0;
    byId("where").textContent =
      `${first} to ${page * PER_PAGE + rows.length} of ${shown.length.toLocaleString("en")}`;
    for (const id of ["before", "before2"]) byId(id).disabled = page === 0;
    for (const id of ["after", "after2"]) byId(id).disabled = page >= pages - 1;
  }

  function choose() {
    const words = byId("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = byId("filter").value;
    shown = all.filter((row) => {
      const flags = row.dataset.flags;
      if (wanted === "*" ? !flags : wanted && !flags.split("|").includes(wanted)) return false;
      if (!words.length) return true;
      const text = (row.cells[0].textContent + " " + flags).toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const { column, down } = sorted;
    if (column >= 0) {
      const sign = down ? -1 : 1;
      const key = (row) => {
        const cell = row.cells[column];
        if (column === 1) return row.dataset.flags ? row.dataset.flags.split("|").length : 0;
        if (cell.dataset.v === undefined) return cell.textContent;
        return cell.dataset.v === "" ? NaN : Number(cell.dataset.v);
      };
      const keyed = shown.map((row, place) => ({ row, place, key: key(row) }));
      keyed.sort((a, b) => {
        if (typeof a.key === "string") {
          return sign * a.key.localeCompare(b.key, "en", { numeric: true }) || a.place - b.place;
        }
        const first = Number.isNaN(a.key), second = Number.isNaN(b.key);
        if (first || second) return first - second || a.place - b.place; // undefined ones last
        return sign * (a.key - b.key) || a.place - b.place;
      });
      shown = keyed.map((entry) => entry.row);
    }
    page = 0;
    render();
  }

  function turn(by, upwards) {
    page += by;
    render();
    if (upwards) byId("top").scrollIntoView();
  }

  document.documentElement.classList.add("js");
  all.forEach((row) => {
    const name = row.cells[0];
    name.replaceChildren(make("a", { href: "#c" + row.id.slice(1) }, name.textContent));
  });
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = make("button", { type: "button" }, cell.textContent);
    button.addEventListener("click", () => {
      const down = sorted.column === column ? !sorted.down : column === 1;
      sorted = { column, down };
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      choose();
    });
    cell.replaceChildren(button);
  });
  byId("search").addEventListener("input", choose);
  byId("filter").addEventListener("change", choose);
  byId("before").addEventListener("click", () => turn(-1, false));
  byId("after").addEventListener("click", () => turn(1, false));
  byId("before2").addEventListener("click", () => turn(-1, true));
  byId("after2").addEventListener("click", () => turn(1, true));
  render();
})();
