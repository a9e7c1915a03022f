declare module "temml";
declare module "lowlight";
declare module "highlight.js/languages/*";
