import { mirrorSettings, type Setting, settings } from './schema.js'

const width = 80
const indent = '      '

function wrap(text: string): string {
  const lines = ['']
  for (const word of text.split(' ')) {
    const line = lines.at(-1) ?? ''
    if (line !== '' && indent.length + line.length + 1 + word.length > width) lines.push(word)
    else lines[lines.length - 1] = line === '' ? word : `${line} ${word}`
  }
  return lines.map((line) => `${indent}${line}`).join('\n')
}

function describe(name: string, { fallback, description }: Omit<Setting, 'variable'>, variable = ''): string {
  return `  ${name} (${variable}${fallback === undefined ? 'unset' : `default ${fallback}`})\n${wrap(description)}`
}

/**
 * All settings with their variables, defaults and descriptions, and those of a mirror, as text of up to 80 columns;
 * ends without a newline.
 */
export function settingsHelp(): string {
  return [
    ...settings.map((setting) => describe(setting.path, setting, `${setting.variable}, `)),
    '\nEach of the mirrors has these settings of its own; only name must be written:',
    ...mirrorSettings.map((setting) => describe(setting.path, setting)),
  ].join('\n')
}
