# Finds libtorch by its headers and libraries: Debian's libtorch-dev, an unpacked libtorch, or the torch package of Python.
#
# Torch's own package file is not used: built for CUDA it enables the CUDA language and stops the configuration on a
# mismatch of toolkits that a CPU adapter does not care about. Looks under Libtorch_ROOT, CMAKE_PREFIX_PATH (also
# where that is torch.utils.cmake_prefix_path), the virtual environment that launch/setup makes, and python3.
# Sets Libtorch_FOUND, Libtorch_VERSION, Libtorch_DETAIL (a line that says what was found or why not), target Libtorch::torch.
# Where that libtorch was built with CUDA, and a CUDA Toolkit has the headers that its headers include, also target
# Libtorch::cuda: what a program needs to use tensors on GPUs.

set(_hints ${Libtorch_ROOT} ${CMAKE_PREFIX_PATH})
foreach(_prefix IN LISTS CMAKE_PREFIX_PATH)
  list(APPEND _hints "${_prefix}/../..")
endforeach()
find_path(Libtorch_INCLUDE_DIR torch/csrc/api/include/torch/torch.h HINTS ${_hints} PATH_SUFFIXES include)

if(NOT Libtorch_INCLUDE_DIR)
  foreach(_python IN ITEMS "${PROJECT_SOURCE_DIR}/build/python/bin/python3" python3)
    execute_process(
      COMMAND "${_python}" -c "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
      OUTPUT_VARIABLE _package OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE _failed)
    if(NOT _failed AND _package)
      find_path(Libtorch_INCLUDE_DIR torch/csrc/api/include/torch/torch.h HINTS "${_package}/include" NO_DEFAULT_PATH)
      if(Libtorch_INCLUDE_DIR)
        break()
      endif()
    endif()
  endforeach()
endif()

set(Libtorch_LIBRARIES "")
foreach(_name IN ITEMS torch torch_cpu c10)
  # The libraries that stand beside the headers found, not those of another installation.
  find_library(Libtorch_${_name}_LIBRARY ${_name}
    HINTS "${Libtorch_INCLUDE_DIR}/../lib" "${Libtorch_INCLUDE_DIR}/../lib/${CMAKE_LIBRARY_ARCHITECTURE}" NO_DEFAULT_PATH)
  mark_as_advanced(Libtorch_${_name}_LIBRARY)
  list(APPEND Libtorch_LIBRARIES "${Libtorch_${_name}_LIBRARY}")
endforeach()

set(Libtorch_DETAIL "libtorch not found: no torch/torch.h")
if(Libtorch_INCLUDE_DIR)
  set(_numbers "")
  foreach(_header IN ITEMS torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
    if(EXISTS "${Libtorch_INCLUDE_DIR}/${_header}" AND NOT _numbers)
      file(STRINGS "${Libtorch_INCLUDE_DIR}/${_header}" _numbers REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) [0-9]+")
    endif()
  endforeach()
  list(TRANSFORM _numbers REPLACE ".* ([0-9]+)$" "\\1")
  list(JOIN _numbers "." Libtorch_VERSION)
  # A libtorch of the old C++ ABI would need every library of the program in that ABI.
  set(_abi 1)
  file(GLOB _config "${Libtorch_INCLUDE_DIR}/../share/cmake/Torch/TorchConfig.cmake"
    "${Libtorch_INCLUDE_DIR}/../lib/${CMAKE_LIBRARY_ARCHITECTURE}/cmake/Torch/TorchConfig.cmake")
  foreach(_file IN LISTS _config)
    file(STRINGS "${_file}" _line REGEX "_GLIBCXX_USE_CXX11_ABI=[01]")
    if(_line MATCHES "_GLIBCXX_USE_CXX11_ABI=([01])")
      set(_abi ${CMAKE_MATCH_1})
    endif()
  endforeach()
  set(_own_abi 1)
  if(CMAKE_CXX_FLAGS MATCHES "_GLIBCXX_USE_CXX11_ABI=([01])")
    set(_own_abi ${CMAKE_MATCH_1})
  endif()
  if(Libtorch_LIBRARIES MATCHES "NOTFOUND")
    set(Libtorch_DETAIL "libtorch has headers but not all of libtorch, libtorch_cpu, libc10")
  elseif(NOT _abi EQUAL _own_abi)
    set(Libtorch_DETAIL "libtorch ${Libtorch_VERSION} is built with _GLIBCXX_USE_CXX11_ABI=${_abi}, must be ${_own_abi} as this build")
  else()
    set(Libtorch_DETAIL "libtorch ${Libtorch_VERSION}")
    set(_usable TRUE)
  endif()
endif()

# Built with CUDA: torch_cuda has the kernels, c10_cuda the streams. Debian ships their headers without the libraries.
foreach(_name IN ITEMS torch_cuda c10_cuda)
  find_library(Libtorch_${_name}_LIBRARY ${_name} HINTS "${Libtorch_INCLUDE_DIR}/../lib" NO_DEFAULT_PATH)
  mark_as_advanced(Libtorch_${_name}_LIBRARY)
endforeach()
set(_cuda FALSE)
if(_usable AND Libtorch_torch_cuda_LIBRARY AND Libtorch_c10_cuda_LIBRARY)
  find_package(CUDAToolkit QUIET)
  if(CUDAToolkit_FOUND)
    set(_cuda TRUE)
    string(APPEND Libtorch_DETAIL " with CUDA")
  else()
    string(APPEND Libtorch_DETAIL " with CUDA, which needs a CUDA Toolkit here")
  endif()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Libtorch REQUIRED_VARS Libtorch_INCLUDE_DIR Libtorch_LIBRARIES _usable
  VERSION_VAR Libtorch_VERSION REASON_FAILURE_MESSAGE "${Libtorch_DETAIL}")
mark_as_advanced(Libtorch_INCLUDE_DIR)

if(Libtorch_FOUND AND NOT TARGET Libtorch::torch)
  add_library(Libtorch::torch INTERFACE IMPORTED)
  set_target_properties(Libtorch::torch PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${Libtorch_INCLUDE_DIR};${Libtorch_INCLUDE_DIR}/torch/csrc/api/include"
    INTERFACE_LINK_LIBRARIES "${Libtorch_LIBRARIES}")
endif()
if(Libtorch_FOUND AND _cuda AND NOT TARGET Libtorch::cuda)
  add_library(Libtorch::cuda INTERFACE IMPORTED)
  # torch_cuda registers its kernels when it is loaded: no symbol of it is called, so the linker must be told to keep it.
  set_target_properties(Libtorch::cuda PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${CUDAToolkit_INCLUDE_DIRS}"
    INTERFACE_LINK_LIBRARIES
      "Libtorch::torch;-Wl,--push-state,--no-as-needed,${Libtorch_torch_cuda_LIBRARY},--pop-state;${Libtorch_c10_cuda_LIBRARY}")
endif()
unset(_usable)
unset(_cuda)
