/**
 * The modules of the lanes, asked for all at once instead of one import after the other: right away where the
 * address names a run (this module has no imports, so it runs before the others have come), else when somebody is
 * about to start one. Their list is the page's second one, in `<template id="lane-modules">`.
 */
let asked = false;

export function preloadLanes() {
  if (asked) return;
  asked = true;
  const list = /** @type {HTMLTemplateElement|null} */ (document.getElementById("lane-modules"));
  if (list) document.head.append(list.content.cloneNode(true));
}

if (location.hash.startsWith("#/run/")) preloadLanes();
